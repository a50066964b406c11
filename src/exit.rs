//! Every exit code, in one place; the man page and the README are held equal to it by a test.

//! Certificates of servers that are themselves in the bundle of the configuration.
//!
//! A chain of certificates leads from a server to an authority; a server's own certificate that signs
//! itself as an authority, or whose authority is not in the bundle, begins none that rustls takes. Go
//! trusts it (`crypto/x509`, `Certificate.Verify`: a root among the candidates is a chain of one), and
//! kubectl with it.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, VerifierBuilderError},
};

use super::certificate;

/// Has `tls` trust each of these certificates also where a server shows it as its own. They must be
/// those that the configuration names: an authority of the system's is nobody's own certificate.
///
/// # Errors
///
/// None of them can be an authority.
pub(super) fn trust(
    tls: &mut ClientConfig,
    bundle: &[Vec<u8>],
) -> Result<(), VerifierBuilderError> {
    let pinned = Pinned::new(tls.crypto_provider().clone(), bundle)?;
    tls.dangerous().set_certificate_verifier(Arc::new(pinned));
    Ok(())
}

#[derive(Debug)]
struct Pinned {
    bundle: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl Pinned {
    fn new(
        provider: Arc<CryptoProvider>,
        bundle: &[Vec<u8>],
    ) -> Result<Self, VerifierBuilderError> {
        let bundle: Vec<_> = bundle.iter().cloned().map(CertificateDer::from).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(bundle.iter().cloned());
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build()?;
        Ok(Self { bundle, chains })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = self
            .chains
            .verify_server_cert(certificate, intermediates, name, ocsp, now);
        match chain {
            Err(_) if self.bundle.contains(certificate) => {
                let now = i64::try_from(now.as_secs()).map(Timestamp::from_second);
                let Ok(Ok(now)) = now else {
                    return chain;
                };
                certificate::check_server(certificate, now).map_err(Error::InvalidCertificate)?;
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            chain => chain,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        date_time_ymd,
    };
    use rustls::{CertificateError, crypto::aws_lc_rs};

    use super::{super::failure::from_error, *};

    /// A certificate of a server whose authority is in no bundle, or of one that is its own authority.
    fn certificate(
        is_authority: bool,
        edit: impl Fn(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(["api.example".to_owned()]).unwrap();
        if is_authority {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        edit(&mut parameters);
        let made = if is_authority {
            parameters.self_signed(&key)
        } else {
            let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
            parameters.signed_by(&key, &issuer)
        };
        made.unwrap().der().clone()
    }

    fn verify(
        bundle: &[&CertificateDer<'static>],
        shown: &CertificateDer<'static>,
        name: &'static str,
    ) -> Result<(), CertificateError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let bundle: Vec<_> = bundle.iter().map(|der| der.to_vec()).collect();
        let verifier = Pinned::new(provider, &bundle).unwrap();
        let name = ServerName::try_from(name).unwrap();
        let now = UnixTime::now();
        match verifier.verify_server_cert(shown, &[], &name, &[], now) {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(error)) => Err(error),
            Err(error) => panic!("{error:?}"),
        }
    }

    #[test]
    fn certificate_of_the_bundle_is_trusted_for_its_name_its_time_and_as_a_servers() {
        for is_authority in [true, false] {
            let make = |edit: &dyn Fn(&mut CertificateParams)| certificate(is_authority, edit);
            let usage = |usages: &[ExtendedKeyUsagePurpose]| {
                make(&|parameters| parameters.extended_key_usages = usages.to_vec())
            };
            let plain = make(&|_| {});
            assert_eq!(verify(&[&plain], &plain, "api.example"), Ok(()));
            for usages in [
                &[ExtendedKeyUsagePurpose::ServerAuth][..],
                &[
                    ExtendedKeyUsagePurpose::ClientAuth,
                    ExtendedKeyUsagePurpose::ServerAuth,
                ],
                &[ExtendedKeyUsagePurpose::Any],
            ] {
                let good = usage(usages);
                assert_eq!(verify(&[&plain, &good], &good, "api.example"), Ok(()));
            }

            let refused =
                |shown: &CertificateDer<'static>, name| verify(&[shown], shown, name).unwrap_err();
            let other_name = refused(&plain, "other.example");
            assert!(
                matches!(other_name, CertificateError::NotValidForNameContext { .. }),
                "{other_name:?}"
            );
            let past = make(&|parameters| parameters.not_after = date_time_ymd(2020, 1, 1));
            assert_eq!(refused(&past, "api.example"), CertificateError::Expired);
            let future = make(&|parameters| parameters.not_before = date_time_ymd(2120, 1, 1));
            assert_eq!(
                refused(&future, "api.example"),
                CertificateError::NotValidYet
            );
            let clients = usage(&[ExtendedKeyUsagePurpose::ClientAuth]);
            assert_eq!(
                refused(&clients, "api.example"),
                CertificateError::InvalidPurpose
            );
            // Not this one, though of the same name.
            let other = make(&|_| {});
            assert!(verify(&[&other], &plain, "api.example").is_err());
        }
    }

    /// What rustls refuses is told without its numbers. The certificates hold until 2126; no library makes
    /// such ones any more, but `openssl req` and `openssl x509` do.
    #[test]
    fn what_is_refused_for_its_format_is_one_sentence() {
        let in_pem = |text| CertificateDer::from(certificate::in_pem(text).next().unwrap());
        let authority = in_pem(AUTHORITY_OF_RSA_1024);
        let chains = Pinned::new(
            Arc::new(aws_lc_rs::default_provider()),
            &[authority.to_vec()],
        )
        .unwrap();
        let name = ServerName::try_from("api.example").unwrap();
        for (text, expected) in [
            (
                SIGNED_BY_RSA_1024,
                "the server's certificate is signed by another certificate authority of the same name as the one that \
             the configuration trusts, or with an RSA key of fewer than 2,048 bits, which lease-exec refuses",
            ),
            (
                VERSION_1,
                "the server's certificate is an X.509 version 1 certificate, which names no servers",
            ),
        ] {
            let verdict =
                chains.verify_server_cert(&in_pem(text), &[], &name, &[], UnixTime::now());
            let error = std::io::Error::other(verdict.unwrap_err());
            let message = from_error(&error, "S").failure.message;
            assert!(message.starts_with(expected), "{message}");
        }
    }

    const AUTHORITY_OF_RSA_1024: &str = "\
-----BEGIN CERTIFICATE-----
MIIB+DCCAWGgAwIBAgIUOJxCjzvSoBNq5xmIuVW9K9aXDP8wDQYJKoZIhvcNAQEL
BQAwDTELMAkGA1UEAwwCY2EwIBcNMjYxMjAxMTQxMzU5WhgPMjEyNjExMDcxNDEz
NTlaMA0xCzAJBgNVBAMMAmNhMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDE
93danBHzAXrTEpxv84QaetiG7qYpdXK/t24Bzad0/FdeirRgaxoeoaqisTZgLFg3
ua/kMuk2/ipVdbS2cDwz2zmm977LA5hsfaUpmij1Ya6LHRQI/vwXvQr6u8KnRlq0
r7hInYKnC2NdIem2wj/AFHwx4n4YjvcE6BThzfWUTwIDAQABo1MwUTAdBgNVHQ4E
FgQUYaPMN3KMtCDxYRh/MksXLFSJlhEwHwYDVR0jBBgwFoAUYaPMN3KMtCDxYRh/
MksXLFSJlhEwDwYDVR0TAQH/BAUwAwEB/zANBgkqhkiG9w0BAQsFAAOBgQAC0Cei
ug4xREmntITw4I6eDE7/sNK1KOt0wTr1cAlQOMXoqc/NMzxi6tUyeWKhObpRHVzD
ERmquDsBIey/f8sfAB9W+7Jd8g/cXEUphpO9L+xU+eyO+oZxkzTo0DGliHd1CRvD
VPNhDvtow6Z9g881yiuJqBbleHybqeuuZ7mbiQ==
-----END CERTIFICATE-----
";

    const SIGNED_BY_RSA_1024: &str = "\
-----BEGIN CERTIFICATE-----
MIIBwTCCASqgAwIBAgIUG3qCRBMfGLQiH5IlHhRG4ErGwnIwDQYJKoZIhvcNAQEL
BQAwDTELMAkGA1UEAwwCY2EwIBcNMjYxMjAxMTQxMzU5WhgPMjEyNjExMDcxNDEz
NTlaMBYxFDASBgNVBAMMC2FwaS5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEPLVwKxsOSoHjNH+RWoAqK/NvPTnyHNxMYX9wi6PohTTlspgvRyqBrU6S
0QihcqbF+I4gFamzavWxDnjPgmE2qKNaMFgwFgYDVR0RBA8wDYILYXBpLmV4YW1w
bGUwHQYDVR0OBBYEFDLp5tx4VL4w7VOfj4d/XW/dNLuHMB8GA1UdIwQYMBaAFGGj
zDdyjLQg8WEYfzJLFyxUiZYRMA0GCSqGSIb3DQEBCwUAA4GBACv1YUxicg2o0oL1
TdISNGrBSCi4HhYys/pQ50JJIoK6BfRycFlx6rFzN323Aqp/KJMcgeJ7gMqcJeTv
nqIm2N54Bu4HZQryklS94XlmcJb9yU/6U0JsLRcCOk1XEfZdzrgvjP+PLLNXCu7s
WwWoGJArS8ipfNxMY5oGSx0q2VbD
-----END CERTIFICATE-----
";

    const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBKDCBzwIUEyUfiejNXKbzQK5Yu8wRdvLCIk8wCgYIKoZIzj0EAwIwFjEUMBIG
A1UEAwwLYXBpLmV4YW1wbGUwIBcNMjYxMjAxMTQxNDAwWhgPMjEyNjExMDcxNDE0
MDBaMBYxFDASBgNVBAMMC2FwaS5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEPLVwKxsOSoHjNH+RWoAqK/NvPTnyHNxMYX9wi6PohTTlspgvRyqBrU6S
0QihcqbF+I4gFamzavWxDnjPgmE2qDAKBggqhkjOPQQDAgNIADBFAiB9+dvdsaR0
a+9Qiv1X9btStQbjTxu7UWko9Vq6VVVwYAIhANOG72LDo33sxT3mV6B5iv2mwrfA
Gm61Ght0TmYhZ+fQ
-----END CERTIFICATE-----
";
}

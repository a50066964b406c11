// Runs a command while holding a Lease, by client-go's leader election and nothing else: what people
// write who need lease-exec and have a Go compiler. The tests and the benchmarks compare lease-exec
// with it.
//
// It follows client-go's own example: a signal cancels the context, and whoever is deposed ends. To
// that it adds what a command needs: SIGTERM, a grace, SIGKILL, all of it to the one process that it
// has started. It makes no mistake on purpose; where it may do better or worse, it has an option.
//
// tests/control-plane.sh compiles it twice: in this module, with the client-go of the current
// Kubernetes, and in Debian's source of Kubernetes, with the one there. A change of this file raises
// both recipes in that script.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func main() {
	name := flag.String("lease", "", "the Lease's name")
	namespace := flag.String("namespace", "default", "the Lease's namespace")
	kubeconfig := flag.String("kubeconfig", "", "the configuration file")
	identity := flag.String("identity", fmt.Sprintf("client-go-%d", os.Getpid()), "who we are")
	duration := flag.Duration("duration", 15*time.Second, "client-go's LeaseDuration")
	renew := flag.Duration("renew", 10*time.Second, "client-go's RenewDeadline")
	retry := flag.Duration("retry", 2*time.Second, "client-go's RetryPeriod")
	timeout := flag.Duration("timeout", -1, "of a request; 0 is none, as clients have by default; "+
		"negative is half of -renew but at least 1s, as resourcelock.NewFromKubeconfig has it")
	grace := flag.Duration("grace", -1, "from SIGTERM to SIGKILL; negative is -duration less -renew "+
		"and -retry, all that client-go's own reckoning leaves")
	release := flag.Bool("release-on-cancel", false, "client-go's ReleaseOnCancel")
	flag.Parse()
	if *name == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: client-go-wrapper -lease NAME [OPTION...] -- COMMAND [ARGUMENT...]")
		os.Exit(64)
	}
	if *timeout < 0 {
		*timeout = *renew / 2
		if *timeout < time.Second {
			*timeout = time.Second
		}
	}
	if *grace < 0 {
		*grace = *duration - *renew - *retry
	}

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fail(78, err)
	}
	config.Timeout = *timeout
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		fail(78, err)
	}

	// client-go spreads its polls by this, and before Go 1.20 nobody else does.
	rand.Seed(time.Now().UnixNano())

	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		cancel()
	}()

	run := &run{argv: flag.Args(), grace: *grace, ended: make(chan int, 1)}
	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: *namespace, Name: *name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: *identity},
		},
		LeaseDuration:   *duration,
		RenewDeadline:   *renew,
		RetryPeriod:     *retry,
		ReleaseOnCancel: *release,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				run.start()
				run.ended <- run.wait()
				cancel()
			},
			OnNewLeader: func(holder string) {
				if holder != *identity {
					fmt.Fprintf(os.Stderr, "client-go-wrapper: %s holds the lease\n", holder)
				}
			},
			// With ReleaseOnCancel the Lease is free by now; otherwise it will expire.
			OnStoppedLeading: func() { os.Exit(run.stop()) },
		},
	})
}

// The command, which is started once at most, and not after it was stopped.
type run struct {
	argv  []string
	grace time.Duration
	// Guards what follows it.
	mutex   sync.Mutex
	stopped bool
	command *exec.Cmd
	// Gets the command's exit code.
	ended chan int
}

func (run *run) start() {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	if run.stopped {
		return
	}
	command := exec.Command(run.argv[0], run.argv[1:]...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		fail(127, err)
	}
	run.command = command
}

// Waits until the command has ended, and returns its exit code.
func (run *run) wait() int {
	if run.command == nil {
		return exitLost
	}
	_ = run.command.Wait()
	status := run.command.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// Ends the command if it runs, and returns the exit code: the command's if it had ended by itself.
func (run *run) stop() int {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	run.stopped = true
	if run.command == nil {
		return exitLost
	}
	select {
	case code := <-run.ended:
		return code
	default:
	}
	_ = run.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-run.ended:
	case <-time.After(run.grace):
		_ = run.command.Process.Kill()
		<-run.ended
	}
	return exitLost
}

func fail(code int, err error) {
	fmt.Fprintf(os.Stderr, "client-go-wrapper: %v\n", err)
	os.Exit(code)
}

// As lease-exec has it: the lease was lost, or nobody is left who would want it.
const exitLost = 79

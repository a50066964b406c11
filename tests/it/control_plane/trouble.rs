//! What a test does to the servers of its own control plane.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use http::Method;
use serde_json::Value;

use super::servers::Server;
use super::{
    ControlPlane, START_LIMIT, User, free_port, lock, start_api_server, start_etcd, url,
    wait_until_etcd_listens,
};
use crate::wait::wait_until;

impl ControlPlane {
    /// Stops the API server with SIGSTOP: connections stay, and nothing is answered.
    pub(crate) fn stop_api_server(&self) {
        lock(&self.api_server).stop();
    }

    /// Lets a stopped API server continue.
    pub(crate) fn continue_api_server(&self) {
        lock(&self.api_server).resume();
    }

    /// Kills the API server: connections are reset, and new ones refused.
    pub(crate) fn kill_api_server(&self) {
        lock(&self.api_server).kill();
    }

    /// Starts a killed API server again, with the same port and data, and waits until it is ready.
    pub(crate) fn start_api_server(&self) {
        *lock(&self.api_server) = start_api_server(
            &self.group,
            self.bind_address,
            self.port,
            self.etcd_port,
            self.options,
        );
        self.wait_until_ready();
    }

    /// Asks the API server to end, as a kubelet does, and waits until it has.
    pub(crate) fn terminate_api_server(&self) {
        lock(&self.api_server).terminate();
    }

    /// Starts one more API server on the same etcd, and waits until it serves leases. Stopping and
    /// killing means the first one.
    pub(crate) fn start_second_api_server(&self) -> SecondApiServer {
        self.start_second(self.bind_address, free_port())
    }

    /// The same, with the first one's port on another address.
    pub(crate) fn start_second_api_server_on(&self, address: Ipv4Addr) -> SecondApiServer {
        self.start_second(address, self.port)
    }

    fn start_second(&self, bind_address: Ipv4Addr, port: u16) -> SecondApiServer {
        let mut server = start_api_server(
            &self.group,
            bind_address,
            port,
            self.etcd_port,
            self.options,
        );
        let url = url(bind_address, port);
        let client = self.client_at(&url, User::Admin);
        let is_ready = || {
            assert!(server.is_running(), "{}", server.log_tail());
            let answer = client.send(&Method::GET, "/readyz", None);
            answer
                .is_ok_and(|answer| answer.status == 200)
                .then_some(())
        };
        wait_until("the second API server is ready", START_LIMIT, is_ready);
        SecondApiServer { url, server }
    }

    /// Has etcd forget all but the newest state.
    pub(crate) fn compact_etcd(&self) {
        let status = self.etcdctl_says(&["endpoint", "status", "--write-out=json"]);
        let status: Value = serde_json::from_str(&status).expect("etcdctl prints JSON");
        let revision = status[0]["Status"]["header"]["revision"].as_u64();
        let revision = revision.expect("etcd has a revision").to_string();
        self.etcdctl_says(&["compaction", "--physical", &revision]);
    }

    /// Saves what etcd holds, for [`Self::restore`]: its directory, as a kill at this moment would leave
    /// it. What restores a snapshot is not the same program in all versions of etcd.
    pub(crate) fn save(&self) -> PathBuf {
        let saved = self.directory().join("saved");
        self.stop_etcd();
        let mut copy = Command::new("cp");
        copy.arg("-r")
            .arg(self.directory().join("etcd"))
            .arg(&saved);
        assert!(copy.status().expect("run cp").success());
        self.continue_etcd();
        saved
    }

    /// Kills both servers, gives etcd what was saved in place of what it has, and starts them again.
    pub(crate) fn restore(&self, saved: &Path) {
        self.kill_api_server();
        lock(&self.etcd).kill();
        let data = self.directory().join("etcd");
        fs::remove_dir_all(&data).expect("a dead etcd's directory can be removed");
        fs::rename(saved, &data).expect("what was saved can be moved");
        *lock(&self.etcd) = start_etcd(&self.group, self.etcd_port);
        wait_until_etcd_listens(&self.etcd, self.etcd_port);
        self.start_api_server();
    }

    fn etcdctl_says(&self, arguments: &[&str]) -> String {
        let output = self.etcdctl().args(arguments).output();
        let output = output.expect("etcdctl is beside etcd");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("etcdctl prints text")
    }

    /// Stops etcd with SIGSTOP: the API server takes requests, and answers few of them.
    pub(crate) fn stop_etcd(&self) {
        lock(&self.etcd).stop();
    }

    /// Lets a stopped etcd continue.
    pub(crate) fn continue_etcd(&self) {
        lock(&self.etcd).resume();
    }

    /// Kills etcd.
    pub(crate) fn kill_etcd(&self) {
        lock(&self.etcd).kill();
    }

    /// Starts a killed etcd again, with the same port and data, and waits until the API server is
    /// ready.
    pub(crate) fn start_etcd(&self) {
        *lock(&self.etcd) = start_etcd(&self.group, self.etcd_port);
        self.wait_until_ready();
    }
}

/// One more API server of a control plane. Dropping it kills it.
pub(crate) struct SecondApiServer {
    url: String,
    server: Server,
}

impl SecondApiServer {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops it with SIGSTOP: it doesn't see what is written meanwhile.
    pub(crate) fn stop(&mut self) {
        self.server.stop();
    }

    /// Lets it continue.
    pub(crate) fn resume(&mut self) {
        self.server.resume();
    }
}

use super::*;
use crate::ffi::sys::{self, Polled};
use std::io::{Read, Write};
use std::net::{SocketAddrV6, TcpListener};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

#[test]
fn a_mac_becomes_a_link_local_address() {
    let address: Ipv6Addr = "fe80::216:3eff:fe5a:1b2c".parse().unwrap();
    assert_eq!(mac("00:16:3e:5a:1b:2c").link_local(), address);
    assert_eq!(mac("00:16:3E:5A:1B:2C\n").link_local(), address);
    assert_eq!(mac("00:16:3E:5A:1B:2C\n").to_string(), "00:16:3e:5a:1b:2c");
}

#[test]
fn what_is_no_mac_is_refused() {
    for bad in [
        "",
        "00:16:3e:5a:1b",
        "00:16:3e:5a:1b:2c:00",
        "0:16:3e:5a:1b:2c",
        "00-16-3e-5a-1b-2c",
        "zz:16:3e:5a:1b:2c",
    ] {
        assert!(matches!(bad.parse::<Mac>(), Err(NetError::BadMac(_))), "{bad}");
    }
}

/// Which stub a process is, and its port.
const ROLE: &str = "STUBCTL_TEST_STUB";
const BRIDGE: &str = "xenstub0";
const MAC_A: &str = "00:16:3e:00:00:0a";
const MAC_B: &str = "00:16:3e:5a:1b:2c";
const TIMEOUT: Duration = Duration::from_secs(5);

/// A namespace with one interface on the bridge and a listener that says its name: what a stub is to dom0.
struct FakeStub {
    name: &'static str,
    vif: String,
    listener: Child,
}

impl FakeStub {
    fn start(name: &'static str, vif: &str, mac: &str) -> Self {
        run("ip", &["netns", "add", name]).unwrap();
        inside(name, "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.ndisc_notify=1");
        plug(name, vif, mac);
        let mut listener = Command::new("ip");
        listener.args(["netns", "exec", name]).arg(std::env::current_exe().unwrap());
        listener.args(["--ignored", "--exact", "net::tests::as_a_stub"]).env(ROLE, name);
        let listener = listener.stdout(Stdio::null()).spawn().unwrap();
        Self { name, vif: vif.to_owned(), listener }
    }

    fn port(&self, mac_text: &str) -> Result<Port, NetError> {
        Port::tie(BRIDGE, self.vif.clone(), mac(mac_text))
    }

    /// Says to everybody on the bridge that the address is at this MAC.
    fn claim(&self, address: Ipv6Addr, mac: &str) {
        inside(
            self.name,
            &format!("ip addr replace {address}/64 dev eth0 nodad; ip link set eth0 address {mac}"),
        );
    }
}

impl Drop for FakeStub {
    fn drop(&mut self) {
        // It fails only if it has ended by itself.
        let _ = self.listener.kill();
        let _ = self.listener.wait();
    }
}

fn plug(name: &str, vif: &str, mac: &str) {
    run("ip", &["link", "add", vif, "type", "veth", "peer", "name", "eth0", "netns", name]).unwrap();
    run("ip", &["link", "set", vif, "master", BRIDGE, "up"]).unwrap();
    inside(name, &format!("ip link set eth0 address {mac} up"));
}

fn inside(name: &str, script: &str) {
    run("ip", &["netns", "exec", name, "sh", "-ec", script]).unwrap();
}

/// Run by [`FakeStub::start`] in a namespace.
#[test]
#[ignore = "part of the test below"]
fn as_a_stub() {
    let Ok(name) = std::env::var(ROLE) else { return };
    let listener = TcpListener::bind(("::", control::STREAM_PORT)).unwrap();
    for socket in listener.incoming() {
        let _ = socket.unwrap().write_all(name.as_bytes());
    }
}

/// Who answers the relay at the address; waits until somebody does.
fn who_answers(address: Ipv6Addr) -> String {
    let to = SocketAddrV6::new(address, control::STREAM_PORT, 0, interface_index(BRIDGE).unwrap());
    let began = Instant::now();
    while began.elapsed() < TIMEOUT * 6 {
        if let Ok(said) = ask(to) {
            return said;
        }
        std::thread::sleep(TIMEOUT / 50);
    }
    "nobody".to_owned()
}

fn ask(to: SocketAddrV6) -> io::Result<String> {
    let mut socket = sys::begin_to_connect(RELAY_ADDRESS, control::RELAY_PORTS, to)?;
    let ended = Polled::writable(socket.as_fd());
    sys::poll(&[&ended], TIMEOUT)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut said = String::new();
    socket.read_to_string(&mut said)?;
    Ok(said)
}

#[test]
#[ignore = "makes bridges and namespaces: tests/namespaces.sh runs it in a network of its own"]
fn no_stub_draws_to_itself_what_is_for_another() {
    ensure_bridge(BRIDGE).unwrap();
    let (a, b) = (FakeStub::start("a", "vif8.0", MAC_A), FakeStub::start("b", "vif9.0", MAC_B));
    let (port_a, port_b) = (a.port(MAC_A).unwrap(), b.port(MAC_B).unwrap());
    assert_eq!(who_answers(port_a.address()), "a");
    for nr in 0..10 {
        // By turns with its own MAC and with b's.
        a.claim(port_b.address(), if nr % 2 == 0 { MAC_A } else { MAC_B });
        assert_eq!(who_answers(port_b.address()), "b", "claim {nr}");
    }
    // Unplugged, b gets nothing, and nobody gets it in its place; plugged again, it is tied as before.
    run("ip", &["link", "del", "vif9.0"]).unwrap();
    assert!(!port_b.is_plugged() && port_b.keep().is_ok());
    assert!(matches!(b.port(MAC_B), Err(NetError::NoPort { .. })));
    plug("b", "vif9.0", MAC_B);
    assert!(!port_b.is_set());
    port_b.keep().unwrap();
    assert!(port_b.is_set());
    a.claim(port_b.address(), MAC_B);
    assert_eq!(who_answers(port_b.address()), "b");
    drop(port_b);
}

#[test]
#[ignore = "hides a kernel's settings: tests/namespaces.sh runs it with mounts of its own"]
fn without_ipv6_there_are_words_before_a_stub_starts() {
    run("mount", &["-t", "tmpfs", "none", "/proc/sys/net/ipv6"]).unwrap();
    let error = ensure_bridge(BRIDGE).unwrap_err().to_string();
    assert!(error.contains("IPv6") && error.contains("transport = ring"), "{error}");
    assert!(!device(BRIDGE).exists());
}

#[test]
#[ignore = "makes bridges, namespaces and a packet filter: tests/namespaces.sh runs it in a network of its own"]
fn the_packet_filter_lets_a_stream_pass_and_no_service_of_dom0() {
    ensure_bridge(BRIDGE).unwrap();
    let service = TcpListener::bind(("::", 700)).unwrap();
    let stub = FakeStub::start("b", "vif9.0", MAC_B);
    let port = stub.port(MAC_B).unwrap();
    let reaches = || {
        let script = format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{RELAY_ADDRESS}%eth0/700'");
        run("ip", &["netns", "exec", "b", "sh", "-c", &script]).is_ok()
    };
    assert_eq!(who_answers(port.address()), "b");
    assert!(reaches(), "without the filter a service is there for everybody");
    let filter = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dist/stub-bridge.nft");
    run("nft", &["-f", filter]).unwrap();
    run("nft", &["-f", filter]).unwrap(); // may be loaded again
    assert!(!reaches());
    assert_eq!(who_answers(port.address()), "b");
    drop(service);
}

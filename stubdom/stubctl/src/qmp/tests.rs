use super::*;
use std::io::{BufRead, BufReader, PipeWriter};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};

const BRIEF: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(3600);
const GREETING: &str = "{\"QMP\": {\"version\": {}}}\r\n";

fn interrupt() -> (Interrupt, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    (Interrupt::at(reader.into()), writer)
}

/// A socket that is gone with the value.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // a test that fails says more than a file that stays
    }
}

fn listen(name: &str) -> (Socket, UnixListener) {
    let path = std::env::temp_dir().join(format!("qmp-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path); // of a test that was killed
    let listener = UnixListener::bind(&path).unwrap();
    (Socket(path), listener)
}

/// A device model that greets and does with its client what `serve` does.
fn device_model<T: Send + 'static>(
    name: &str,
    serve: impl FnOnce(BufReader<UnixStream>) -> T + Send + 'static,
) -> (Socket, JoinHandle<T>) {
    let (socket, listener) = listen(name);
    let served = thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        client.write_all(GREETING.as_bytes()).unwrap();
        serve(BufReader::new(client))
    });
    (socket, served)
}

/// The next command and its number.
fn command(client: &mut BufReader<UnixStream>) -> Option<(String, u64)> {
    let mut line = String::new();
    client.read_line(&mut line).ok().filter(|nr| *nr > 0)?;
    let value: Value = serde_json::from_str(&line).unwrap();
    Some((value["execute"].as_str()?.to_owned(), value["id"].as_u64()?))
}

fn reply(client: &mut BufReader<UnixStream>, text: &str) {
    let _ = client.get_mut().write_all(text.as_bytes()); // who has enough of it goes away
}

fn returned(id: u64) -> String {
    format!("{{\"return\": {{}}, \"id\": {id}}}\r\n")
}

fn status(id: u64, status: &str) -> String {
    format!("{{\"return\": {{\"running\": false, \"status\": \"{status}\"}}, \"id\": {id}}}\r\n")
}

/// A device model that answers each command as `answer` says; gives the commands.
fn answering(
    name: &str,
    mut answer: impl FnMut(&str, u64) -> String + Send + 'static,
) -> (Socket, JoinHandle<Vec<String>>) {
    device_model(name, move |mut client| {
        let mut asked = Vec::new();
        while let Some((command, id)) = command(&mut client) {
            reply(&mut client, &answer(&command, id));
            asked.push(command);
        }
        asked
    })
}

fn connect<'a>(interrupt: &'a Interrupt, path: &Path, patience: Duration) -> Result<Qmp<'a>, QmpError> {
    Ok(Qmp::connect_within(interrupt, path.to_owned(), patience)?.unwrap())
}

#[test]
fn events_between_command_and_answer_are_passed_over() {
    let (interrupt, _writer) = interrupt();
    let (socket, served) =
        answering("events", |_, id| format!("{{\"event\": \"STOP\"}}\r\n{}", returned(id)));
    let mut qmp = connect(&interrupt, &socket.0, LONG).unwrap();
    qmp.stop().unwrap();
    drop(qmp);
    assert_eq!(served.join().unwrap(), ["qmp_capabilities", "stop"]);
}

#[test]
fn a_refusal_carries_the_device_models_words() {
    let (interrupt, _writer) = interrupt();
    let (socket, _) = answering("refusal", |command, id| match command {
        "stop" => format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}, \"id\": {id}}}\n"),
        _ => returned(id),
    });
    let error = connect(&interrupt, &socket.0, LONG).unwrap().stop().unwrap_err().to_string();
    assert_eq!(error, "the device model refused \"stop\": no");
}

#[test]
fn a_guest_without_a_device_model_has_no_socket() {
    let (interrupt, _writer) = interrupt();
    assert!(Qmp::connect(&interrupt, PathBuf::from("/nonexistent/qmp")).unwrap().is_none());
}

#[test]
fn a_socket_that_nobody_serves_is_that_of_a_dead_device_model() {
    let (interrupt, _writer) = interrupt();
    let (socket, listener) = listen("dead");
    drop(listener);
    assert!(matches!(connect(&interrupt, &socket.0, LONG), Err(QmpError::Dead(_))));
}

#[test]
fn a_device_model_that_serves_another_is_busy() {
    let (interrupt, _writer) = interrupt();
    let (socket, _listener) = listen("busy");
    assert!(matches!(connect(&interrupt, &socket.0, BRIEF), Err(QmpError::Busy(..))));
}

#[test]
fn a_full_backlog_is_waited_for_no_longer_than_a_greeting() {
    let (interrupt, _writer) = interrupt();
    let (socket, listener) = listen("backlog");
    sys::tests::shorten_backlog(listener.as_fd());
    let mut waiting = Vec::new();
    while let Ok(stream) = sys::connect_unix(&socket.0) {
        waiting.push(stream);
    }
    assert!(matches!(connect(&interrupt, &socket.0, BRIEF), Err(QmpError::Busy(..))));
}

#[test]
fn a_device_model_that_sends_a_byte_now_and_then_is_late() {
    let (interrupt, _writer) = interrupt();
    let (socket, _) = device_model("bytes", |mut client| {
        let (_, id) = command(&mut client).unwrap();
        reply(&mut client, &returned(id));
        while client.get_mut().write_all(b" ").is_ok() {
            thread::sleep(BRIEF / 10);
        }
    });
    let mut qmp = connect(&interrupt, &socket.0, LONG).unwrap();
    qmp.patience = BRIEF;
    assert!(matches!(qmp.stop(), Err(QmpError::Silent("stop", _))));
}

#[test]
fn events_without_end_do_not_make_the_wait_longer() {
    let (interrupt, _writer) = interrupt();
    let (socket, _) = device_model("flood", |mut client| {
        let (_, id) = command(&mut client).unwrap();
        reply(&mut client, &returned(id));
        while client.get_mut().write_all(b"{\"event\": \"RTC_CHANGE\"}\r\n").is_ok() {}
    });
    let mut qmp = connect(&interrupt, &socket.0, LONG).unwrap();
    qmp.patience = BRIEF;
    assert!(matches!(qmp.stop(), Err(QmpError::Silent("stop", _))));
}

#[test]
fn a_line_without_end_is_no_message() {
    let (interrupt, _writer) = interrupt();
    let (socket, listener) = listen("line");
    thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        while client.write_all(&[b' '; 4096]).is_ok() {}
    });
    assert!(matches!(connect(&interrupt, &socket.0, LONG), Err(QmpError::TooLong(_))));
}

#[test]
fn a_device_model_that_goes_away_is_seen_to() {
    let (interrupt, _writer) = interrupt();
    let (socket, _) = device_model("away", drop);
    let error = connect(&interrupt, &socket.0, LONG).err();
    assert!(matches!(error, Some(QmpError::Io(..))), "{error:?}");
}

#[test]
fn an_interrupt_ends_the_wait_for_a_device_model() {
    let (interrupt, mut writer) = interrupt();
    let (socket, _listener) = listen("interrupt");
    writer.write_all(b"!").unwrap();
    assert!(matches!(connect(&interrupt, &socket.0, LONG), Err(QmpError::Stop(Stop::Signal))));
}

#[test]
fn the_late_answer_to_stop_is_not_that_to_cont() {
    let (interrupt, _writer) = interrupt();
    let (socket, served) = device_model("late", |mut client| {
        let (_, id) = command(&mut client).unwrap();
        reply(&mut client, &returned(id));
        let (stop, stop_id) = command(&mut client).unwrap();
        // Only when it has been given up does it come, and no answer to what came behind it.
        let (cont, _) = command(&mut client).unwrap();
        reply(&mut client, &returned(stop_id));
        (stop, cont, command(&mut client))
    });
    let mut qmp = connect(&interrupt, &socket.0, LONG).unwrap();
    qmp.patience = BRIEF;
    assert!(matches!(qmp.stop(), Err(QmpError::Silent("stop", _))));
    assert!(matches!(qmp.go_on(), Err(QmpError::Silent("cont", _))));
    drop(qmp);
    assert_eq!(served.join().unwrap(), ("stop".to_owned(), "cont".to_owned(), None));
}

#[test]
fn a_device_model_that_stays_paused_has_not_gone_on() {
    let (interrupt, _writer) = interrupt();
    let (socket, served) = answering("paused", |command, id| match command {
        "query-status" => status(id, "paused"),
        _ => returned(id),
    });
    let mut qmp = connect(&interrupt, &socket.0, LONG).unwrap();
    assert!(matches!(qmp.go_on_if_stopped(), Err(QmpError::Paused)));
    drop(qmp);
    assert_eq!(served.join().unwrap(), ["qmp_capabilities", "query-status", "cont", "query-status"]);
}

#[test]
fn a_device_model_that_runs_or_that_others_have_stopped_is_left_as_it_is() {
    let (interrupt, _writer) = interrupt();
    for state in ["running", "io-error", "shutdown"] {
        let (socket, served) = answering(state, move |_, id| status(id, state));
        let mut qmp = connect(&interrupt, &socket.0, LONG).unwrap();
        qmp.go_on_if_stopped().unwrap();
        drop(qmp);
        assert_eq!(served.join().unwrap(), ["qmp_capabilities", "query-status"]);
    }
}

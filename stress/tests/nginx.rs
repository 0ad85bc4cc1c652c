//! Goal: servers that are not meshkv can be measured as well. Method: nginx, where it is installed, with answers
//! that depend on the request, one of which is wrong.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{balanced, n, report};

struct Nginx {
    child: Child,
    folder: std::path::PathBuf,
    url: String,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked to stop, the master ends its workers too.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// `None`: there is no nginx here.
fn nginx() -> Option<Nginx> {
    let found = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let Some(program) = found else {
        println!("SKIPPED: nginx is not installed; templates are tested against the tests' own server alone");
        return None;
    };
    // Free a moment ago; nothing else on this machine picks ports by number.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let folder = std::env::temp_dir().join(format!("meshkv-stress-nginx-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("made");
    let at = folder.display();
    let configuration = format!(
        "daemon off; worker_processes 1; pid {at}/pid; error_log stderr crit;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; keepalive_requests 1000; client_body_temp_path {at}; proxy_temp_path {at};\n\
         fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};\n\
         server {{ listen 127.0.0.1:{port}; default_type text/plain;\n\
         location = /page/13 {{ return 200 \"another\"; }}\n\
         location ~ ^/page/(?<id>.*)$ {{ return 200 \"page $id\"; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).expect("written");
    let child = Command::new(program)
        .args(["-p", &at.to_string(), "-c"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("starts");
    let nginx = Nginx { child, folder, url: format!("http://127.0.0.1:{port}") };
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nginx does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(nginx)
}

#[test]
fn nginx_is_asked_by_a_template_and_every_body_is_looked_at() {
    let Some(nginx) = nginx() else { return };
    let template = ["--template", "/page/{n}", "--expect", "page {n}"];
    let (code, text, json) = report(&nginx.url, &[&template[..], &["-n", "20k", "--keys", "1000"]].concat());
    balanced(&json);
    assert_eq!(code, Some(1), "{text}");
    // Key 13 comes twenty times, and is wrong each time; nothing else is.
    assert_eq!(n(&json, "/counts/errors/verify"), 20, "{text}");
    assert_eq!((n(&json, "/counts/ok"), n(&json, "/counts/failed")), (19_980, 20), "{text}");
    assert!(n(&json, "/client/reconnects") >= 12, "nginx closes each connection after 1000 requests: {text}");
    let (_, text, json) =
        report(&nginx.url, &["-d", "1", "--warmup", "0", "--rate", "500", "--template", "/page/{k}"]);
    assert_eq!(n(&json, "/counts/failed"), 0, "{text}");
    let (_, text, json) = report(&nginx.url, &["-n", "50", "--template", "/nothing"]);
    assert_eq!(n(&json, "/counts/errors/http/404"), 50, "{text}");
}

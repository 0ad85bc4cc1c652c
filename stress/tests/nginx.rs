//! Goal: servers that are not meshkv can be measured as well. Method: nginx, where it is installed, with answers
//! that depend on the request, one of which is wrong.

mod support;

use support::{balanced, n, nginx, report};

#[test]
fn nginx_is_asked_by_a_template_and_every_body_is_looked_at() {
    let locations = "location = /page/13 { return 200 another; }\n\
        location ~ ^/page/(?<id>.*)$ { return 200 \"page $id\"; }";
    let Some(nginx) = nginx(locations, 1000) else { return };
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

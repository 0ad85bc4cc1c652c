//! Goal: the HTML report is fit for a reader: in light and dark mode, on a phone and on a desktop. Method: a real
//! run's reports in headless Chromium, where it is installed; a page around them looks at every element's place,
//! at the letters' size and contrast, and counts the points of the curves.

mod support;

use serde_json::Value;
use std::process::Command;
use support::{Temporary, n, report, right, run, serve, temporary};

/// Bytes that a report may have.
const BYTES_MAX: usize = 200 * 1024;

/// Looks at each frame when all are loaded, and leaves what it found as JSON in the page.
const LOOK: &str = r#"
const luminance = (color) => {
  const [r, g, b] = color.match(/[\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const solid = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = at.ownerDocument.defaultView.getComputedStyle(at).backgroundColor;
    if (!/, 0\)$/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
const look = (frame) => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const found = { width: frame.clientWidth, wide: root.scrollWidth, outside: [], letters: 99, contrast: 99, lines: {} };
  for (const element of page.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), inside = element.closest(".scroll");
    if (!inside && box.width > 0 && (box.right > frame.clientWidth + 1 || box.left < -1))
      found.outside.push(element.tagName + ": " + element.textContent.slice(0, 40));
    const text = element instanceof view.SVGTextElement, own = [...element.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    if (text) {
      const chart = element.ownerSVGElement.getBoundingClientRect();
      if (box.left < chart.left - 1 || box.right > chart.right + 1 || box.bottom > chart.bottom + 1)
        found.outside.push("text of a chart: " + element.textContent);
      for (const other of element.parentElement.querySelectorAll("text")) {
        const far = other.getBoundingClientRect();
        if (other !== element && box.left < far.right - 1 && far.left < box.right - 1 && box.top < far.bottom - 3 && far.top < box.bottom - 3)
          found.outside.push("texts overlap: " + element.textContent + " and " + other.textContent);
      }
    }
    if (own) {
      const style = view.getComputedStyle(element);
      const scale = text ? element.ownerSVGElement.getBoundingClientRect().width / element.ownerSVGElement.viewBox.baseVal.width : 1;
      found.letters = Math.min(found.letters, parseFloat(style.fontSize) * scale);
      found.contrast = Math.min(found.contrast, contrast(text ? style.fill : style.color, solid(element)));
    }
  }
  for (const line of page.querySelectorAll("polyline, polygon")) {
    const name = line.getAttribute("class").replace("line ", "");
    found.lines[name] = [...(found.lines[name] || []), line.points.numberOfItems];
  }
  found.dark = luminance(solid(page.body)) < 0.2;
  found.charts = page.querySelectorAll("svg.chart").length;
  found.text = page.body.innerText;
  return found;
};
addEventListener("load", () => {
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
  document.body.append(result);
});
"#;

fn chromium() -> Option<&'static str> {
    let found = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    if found.is_none() {
        println!("SKIPPED: chromium is not installed; the HTML report is not looked at in a browser");
    }
    found
}

const WIDTHS: [u32; 2] = [360, 1280];

/// What the browser saw of `page` at both widths, and what it had to say on its console.
fn look(browser: &str, page: &str, dark: bool) -> (Vec<Value>, Vec<String>) {
    let escaped = page.replace('&', "&amp;").replace('"', "&quot;");
    let frames: String = WIDTHS
        .iter()
        .map(|width| {
            format!("<iframe width={width} height=900 style=\"border:0\" srcdoc=\"{escaped}\"></iframe>")
        })
        .collect();
    let around = temporary("html");
    std::fs::write(
        &around.0,
        format!("<!doctype html><meta charset=utf-8><body>{frames}<script>{LOOK}</script>"),
    )
    .expect("written");
    let profile = temporary("profile");
    let output = Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path()))
        .arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }))
        .arg(format!("file://{}", around.path()))
        .output()
        .expect("the browser runs");
    let _ = std::fs::remove_dir_all(&profile.0);
    let dom = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    let console = told.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    let result = dom.split_once("<pre id=\"result\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (json, _) = result.unwrap_or_else(|| panic!("no result: {dom:.2000}\n{told}"));
    let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    (serde_json::from_str(&json).expect("JSON"), console)
}

fn check(browser: &str, page: &str, of: &str) -> Value {
    let mut any = Value::Null;
    for dark in [false, true] {
        let (frames, console) = look(browser, page, dark);
        assert!(console.is_empty(), "{of}: {console:?}");
        assert_eq!(frames.len(), WIDTHS.len());
        for (frame, width) in frames.iter().zip(WIDTHS) {
            let case = format!("{of}, dark {dark}, {width} wide");
            assert_eq!(n(frame, "/width"), u64::from(width), "{case}");
            assert!(n(frame, "/wide") <= u64::from(width), "{case}: {} wide", frame["wide"]);
            assert_eq!(frame["outside"].as_array().map(Vec::len), Some(0), "{case}: {}", frame["outside"]);
            assert_eq!(frame["dark"], dark, "{case}");
            assert!(frame["letters"].as_f64() >= Some(8.0), "{case}: letters of {}", frame["letters"]);
            assert!(frame["contrast"].as_f64() >= Some(4.5), "{case}: contrast {}", frame["contrast"]);
        }
        any = frames[0].clone();
    }
    any
}

fn points(frame: &Value, class: &str) -> Vec<u64> {
    frame["lines"][class]
        .as_array()
        .map_or(Vec::new(), |list| list.iter().filter_map(Value::as_u64).collect())
}

#[test]
fn the_page_is_readable_in_a_real_browser() {
    let Some(browser) = chromium() else { return };
    let fixture = serve(|n, request| {
        // One second in, everything stops for a while: a gap, errors, a slow second.
        if n == 700 {
            std::thread::sleep(std::time::Duration::from_millis(400));
        }
        Some(if n % 97 == 5 { support::ok("<b>wrong</b>") } else { right(request) })
    });
    let (base, html) = (temporary("json"), temporary("html"));
    run(&["-n", "2000", "-c", "4", "--rate", "700", "--runs", "2", "--json", base.path(), &fixture.url]);
    let arguments = [
        "-n",
        "2000",
        "--rate",
        "700",
        "--slo",
        "p99<5ms,errors=0,p99.9<400ms",
        "--baseline",
        base.path(),
        "--mix",
        "set=3,get=1,is=1",
        "--html",
        html.path(),
    ];
    let (_, text, json) = report(&fixture.url, &arguments);
    let page = std::fs::read_to_string(&html.0).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(page.len() < BYTES_MAX, "{} bytes", page.len());
    for outside in ["<script", "src=", "href=", "url(", "@import", "http-equiv"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    let frame = check(browser, &page, "an open loop");
    assert_eq!(n(&frame, "/charts"), 3);
    // A point for each of 96 percentiles and clocks; two for each second and curve; the objectives' two ends.
    let seconds = json["intervals"].as_array().expect("a list").len() as u64;
    assert!(seconds >= 3);
    assert_eq!(points(&frame, "response"), [96]);
    assert_eq!(points(&frame, "service"), [96]);
    assert_eq!(points(&frame, "slo"), [2, 2]);
    assert_eq!(points(&frame, "rate"), [2 * seconds]);
    assert_eq!(points(&frame, "failed"), [2 * seconds + 2]);
    assert_eq!(points(&frame, "p99").iter().sum::<u64>(), 2 * seconds);
    let shown = frame["text"].as_str().expect("text");
    assert!(shown.contains(&n(&json, "/counts/sent").to_string()) && shown.contains("p99<5ms"), "{shown}");
}

/// The longest and strangest: an hour, a closed loop against a baseline, a name that is no HTML; and the shortest.
#[test]
fn long_short_and_strange_reports_fit_as_well() {
    let Some(browser) = chromium() else { return };
    let fixture = serve(|_, request| Some(right(request)));
    let (base, html): (Temporary, Temporary) = (temporary("json"), temporary("html"));
    // Enough for six nines on the axis.
    let many =
        ["-n", "30k", "-c", "4", "--pipeline", "32", "--runs", "5", "--json", base.path(), &fixture.url];
    run(&many);
    let plot = |json: &Value, more: &[&str]| {
        let file = temporary("json");
        std::fs::write(&file.0, json.to_string()).expect("written");
        let (code, text) = run(&[&["plot", file.path(), "--html", html.path()], more].concat());
        assert_eq!(code, Some(0), "{text}");
        std::fs::read_to_string(&html.0).expect("written")
    };
    let mut json: Value =
        serde_json::from_str(&std::fs::read_to_string(&base.0).expect("written")).expect("JSON");
    let short = check(browser, &plot(&json, &["--baseline", base.path()]), "a short run");
    assert_eq!(points(&short, "baseline"), [96]);
    json["intervals"] = (0..3600u64)
        .map(|second| {
            serde_json::json!({"t_ns": second * 1_000_000_000, "ok": if second % 600 == 7 { 0 } else { 12_345_678 + second },
                "failed": second % 2, "p50": 1_234_567 + second, "p99": 9_876_543_210u64, "max": 59_999_999_999u64})
        })
        .collect();
    json["reasons"] = serde_json::json!(["<script>alert(1)</script> & \"more\" ".repeat(5), "x".repeat(300)]);
    json["config"]["template"] = format!("/{}?<img src=x>", "long".repeat(60)).into();
    json["target"][0]["url"] = format!("http://{}.example:8080/", "name".repeat(40)).into();
    let page = plot(&json, &[]);
    assert!(page.len() < BYTES_MAX, "{} bytes", page.len());
    let long = check(browser, &page, "an hour");
    assert_eq!(points(&long, "rate"), [600], "twelve seconds a group");
    assert!(long["text"].as_str().expect("text").contains("<script>alert(1)</script>"), "shown, not run");
}

#[test]
fn plot_writes_svg_files_too() {
    let fixture = serve(|_, request| Some(right(request)));
    let (json, svg) = (temporary("json"), temporary("svg"));
    run(&["-n", "300", "-c", "4", "--json", json.path(), "--svg", svg.path(), &fixture.url]);
    let drawn = std::fs::read_to_string(&svg.0).expect("written");
    assert!(drawn.starts_with("<svg xmlns") && drawn.trim_end().ends_with("</svg>"));
    assert_eq!(drawn.matches("<svg").count(), drawn.matches("</svg>").count());
    // To the terminal's output where no file is named.
    let (code, text) = run(&["plot", json.path()]);
    assert!(code == Some(0) && text == drawn, "{text}");
    assert_eq!(run(&["plot", "/nonexistent"]).0, Some(2));
}

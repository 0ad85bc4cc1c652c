//! Goal: what the command line prints is fit for its readers: shells, `man`, people who ask where a setting
//! came from. Method: the real binary with a bare environment.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
    command.env_clear().args(arguments).envs(environment.iter().copied());
    command.output().expect("runs")
}

/// What the program prints to stdout when all is well.
#[track_caller]
fn printed(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = run(arguments, environment);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?} {environment:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Feeds `text` to a program; `None`, and said so, when this machine does not have it.
fn through(program: &str, arguments: &[&str], text: &str) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        // Not with a macro: the test runner would keep that to itself.
        let _ = writeln!(std::io::stderr(), "not applicable: this machine has no {program}");
        return None;
    };
    let mut input = child.stdin.take().expect("piped");
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("ends");
    let _ = writer.join();
    Some(output)
}

/// Both the value and its origin stand in the setting's line of `meshkv check`.
#[track_caller]
fn checked(arguments: &[&str], environment: &[(&str, &str)], flag: &str, value: &str, origin: &str) {
    let text = printed(&[&["check"], arguments].concat(), environment);
    let name = flag.trim_start_matches("--");
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no line of {name}: {text}"));
    assert!(line.contains(value) && line.contains(origin), "{flag} {value} {origin}: {line}");
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_default() {
    for (flag, variables, default, by_variable, by_flag) in [
        ("--host", &["MESHKV_HOST"][..], "127.0.0.1", "127.0.0.2", "127.0.0.3"),
        ("--port", &["MESHKV_PORT", "PORT"], "8080", "7001", "7002"),
        ("--workers", &["MESHKV_WORKERS"], "", "3", "5"),
        ("--max-memory", &["MESHKV_MAX_MEMORY"], "", "33554432", "67108864"),
        ("--max-key-length", &["MESHKV_MAX_KEY_LENGTH"], "64", "77", "99"),
        ("--max-value-length", &["MESHKV_MAX_VALUE_LENGTH"], "256", "277", "299"),
        ("--max-connections", &["MESHKV_MAX_CONNECTIONS"], "", "123", "45"),
        ("--cors-origin", &["MESHKV_CORS_ORIGIN"], "off", "https://a.example", "https://b.example"),
        ("--name", &["MESHKV_NAME", "HOSTNAME"], "", "from-variable", "from-flag"),
        ("--join", &["MESHKV_JOIN", "MESH_NETWORK_URL"], "none", "http://a:1", "http://b:2"),
        ("--peer-port", &["MESHKV_PEER_PORT"], "automatic", "7401", "7402"),
        ("--acks", &["MESHKV_ACKS"], "all", "quorum", "local"),
        ("--log-level", &["MESHKV_LOG_LEVEL"], "info", "warn", "error"),
        ("--log-format", &["MESHKV_LOG_FORMAT"], "text", "json", "text"),
    ] {
        checked(&[], &[], flag, default, "default");
        for variable in variables {
            let environment = [(*variable, by_variable)];
            checked(&[], &environment, flag, by_variable, variable);
            checked(&[flag, by_flag], &environment, flag, by_flag, flag);
            // As an unset one: compose files and shells leave such behind.
            checked(&[], &[(*variable, "")], flag, default, "default");
        }
        if let [own, established] = variables {
            let both = [(*own, by_variable), (*established, by_flag)];
            checked(&[], &both, flag, by_variable, own);
        }
    }
}

#[test]
fn words_are_taken_in_any_case_from_flags_as_from_variables() {
    for (flag, variable, word, value) in [
        ("--log-level", "MESHKV_LOG_LEVEL", "WARN", "warn"),
        ("--log-format", "MESHKV_LOG_FORMAT", "Json", "json"),
    ] {
        checked(&[flag, word], &[], flag, value, flag);
        checked(&[], &[(variable, word)], flag, value, variable);
    }
    // All words are taken; that they do not go together is found behind that.
    let words = ["--log-level", "ERROR", "--select", "Least", "--check", "DOCKER"];
    let output = run(&[&["balance", "--backends", "127.0.0.1:9"][..], &words].concat(), &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("without the engine"), "{text}");
}

#[test]
fn a_bad_value_names_its_flag_or_its_variable_and_exits_with_2() {
    for (arguments, environment, place) in [
        (&["check", "--port", "70000"][..], &[][..], "--port"),
        (&["check"], &[("MESHKV_WORKERS", "none")], "MESHKV_WORKERS"),
        (&["check"], &[("MESHKV_MAX_KEY_LENGTH", "1025")], "MESHKV_MAX_KEY_LENGTH"),
        (&["check", "--max-value-length", "4097"], &[], "--max-value-length"),
        (&["check"], &[("MESHKV_ACKS", "most")], "MESHKV_ACKS"),
        (&["check", "--max-memory", "1K"], &[], "--max-memory"),
        (&["completions", "basic"], &[], "bash"),
        (&["healthcheck", "--url", "n1"], &[("MESHKV_HEALTHCHECK_URL", "http://n1")], "--url: "),
        (&["healthcheck"], &[("MESHKV_HEALTHCHECK_URL", "http://me:hunter2@n1")], "MESHKV_HEALTHCHECK_URL: "),
    ] {
        let output = run(arguments, environment);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && text.contains(place),
            "{arguments:?} {environment:?}: {text}"
        );
        assert!(output.stdout.is_empty(), "data only on stdout");
        assert!(!text.contains("hunter2"), "a password: {text}");
    }
}

#[test]
fn completions_are_programs_of_their_shells() {
    let bash = printed(&["completions", "bash"], &[]);
    let Some(output) = through("bash", &["-n"], &bash) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Not only without fault: they complete.
    let asks = "COMP_WORDS=(meshkv serve --max-m); COMP_CWORD=2; _meshkv meshkv --max-m serve; echo \"${COMPREPLY[@]}\"";
    let output = through("bash", &["--norc"], &format!("{bash}\n{asks}\n")).expect("bash was there");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--max-memory");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = printed(&["completions", shell], &[]);
        assert!(text.contains("max-memory") && text.contains("healthcheck"), "{shell}");
    }
}

#[test]
fn commands_that_are_hidden_are_not_offered() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = printed(&["completions", shell], &[]);
        let offered =
            text.lines().find(|line| line.contains("janitor") || line.contains("ends with its parent"));
        assert_eq!(offered, None, "{shell}");
    }
    let bash = printed(&["completions", "bash"], &[]);
    let asks = "COMP_WORDS=(meshkv m); COMP_CWORD=1; _meshkv meshkv m meshkv; echo \"${COMPREPLY[@]}\"";
    let Some(output) = through("bash", &["--norc"], &format!("{bash}\n{asks}\n")) else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "man");
}

/// Goal: the examples keep their two columns, in a terminal of the usual width as well. Method: the help as it is
/// printed where there is no terminal; its lines are wrapped at the width of one otherwise.
#[test]
fn the_examples_of_the_help_keep_their_columns() {
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let help = printed(arguments, &[]);
        let all: Vec<&str> = help.lines().skip_while(|line| !line.starts_with("Examples:")).collect();
        let examples: Vec<&str> = all.iter().skip(1).copied().take_while(|line| !line.is_empty()).collect();
        assert!(examples.len() > 5, "{help}");
        let column = examples[0].rfind("  ").map(|at| at + 2).expect("two columns");
        for line in examples {
            let (command, meaning) = line.split_at_checked(column).expect(line);
            assert!(
                command.starts_with("  ") && command.ends_with("  ") && !meaning.starts_with(' '),
                "{line}"
            );
        }
        assert!(all.iter().all(|line| line.chars().count() < 80), "{help}");
    }
}

#[test]
fn the_readme_names_every_flag_and_variable() {
    let readme = include_str!("../README.md");
    let mut named = 0;
    for line in printed(&["serve", "--help"], &[]).lines().map(str::trim) {
        // `-p, --port <PORT>`
        let flags = line.split_whitespace().take_while(|word| word.starts_with('-'));
        let flags = flags.map(|word| word.trim_end_matches(','));
        let flags = flags.filter(|word| word.starts_with("--") && *word != "--help");
        let variables = line.strip_prefix("[env: ").and_then(|rest| rest.split(']').next());
        for name in flags.chain(variables.into_iter().flat_map(|names| names.split(", "))) {
            let found = ["`", " "].iter().any(|end| readme.contains(&format!("`{name}{end}")));
            assert!(found, "README.md does not name {name}");
            named += 1;
        }
    }
    assert!(named > 30, "{named} names: the help is not read as it is written");
}

#[test]
fn the_readmes_tables_have_whole_rows() {
    let mut cells = None;
    for line in include_str!("../README.md").lines() {
        if !line.starts_with('|') {
            cells = None;
            continue;
        }
        // A bar in code is escaped.
        let here = line.replace("\\|", "").matches('|').count();
        assert!(line.ends_with('|') && here == *cells.get_or_insert(here), "{line}");
    }
}

#[test]
fn the_man_page_renders() {
    let page = printed(&["man"], &[]);
    assert!(page.contains(".TH"));
    let arguments = ["-man", "-Tutf8", "-ww", "-P-c"];
    let Some(output) = through("groff", &arguments, &page) else { return };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    // Bold letters are struck twice: letter, backspace, letter.
    let struck = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut shown = String::new();
    for character in struck.chars() {
        match character {
            '\u{8}' => drop(shown.pop()),
            _ => shown.push(character),
        }
    }
    for part in ["NAME", "SYNOPSIS", "OPTIONS", "--max-memory", "MESHKV_PORT", "meshkv"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

//! Chat rendering without any file from outside: what templates get, and hostile templates, which
//! must end in a one-line error without using much memory (asserted where `/proc` tells it).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drafthorse_runtime::tokenizer::TokenizerError;
use drafthorse_runtime::tokenizer::chat::{Date, Message, RenderOptions, render};
use proptest::prelude::*;

const OPTIONS: RenderOptions<'static> = RenderOptions {
    add_generation_prompt: true,
    bos_token: "<s>",
    eos_token: "</s>",
    date: Some(Date { year: 2026, month: 2, day: 7, hour: 9, minute: 5, second: 0 }),
};

fn hello() -> Vec<Message> {
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    vec![message("system", "Be <kind>."), message("user", "Hello\n")]
}

fn rendered(template: &str) -> String {
    render(template, &hello(), &OPTIONS).unwrap_or_else(|error| panic!("{template}: {error}"))
}

#[test]
fn templates_see_the_conversation_and_the_special_tokens() {
    let template = "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message['content'] | trim }}\
        {{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    assert_eq!(rendered(template), "<s><system>Be <kind>.</s><user>Hello</s><assistant>");
    let options = RenderOptions { add_generation_prompt: false, ..OPTIONS };
    assert!(!render(template, &hello(), &options).unwrap().contains("<assistant>"));
    assert_eq!(
        rendered("{{ tools is none }} {{ tools is defined }} {{ unknown is defined }}"),
        "True True False"
    );
}

#[test]
fn blocks_take_their_newline_and_indentation_with_them() {
    assert_eq!(rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(rendered("a\r\n{% if true %}\r\nb{% endif %}"), "a\nb");
    assert_eq!(rendered("x {% generation %} y {%- endgeneration -%} z"), "x  yz");
}

#[test]
fn python_idioms_work() {
    assert_eq!(rendered("{{ ' a '.strip() + 'b_c'.split('_')[-1] ~ (1 + 2) }}"), "ac3");
    assert_eq!(rendered("{{ 'abc'.removeprefix('a') }}{{ {'a': none}.get('b', 'x') }}"), "bcx");
    assert_eq!(rendered("{{ messages[1:] | tojson }}"), r#"[{"role": "user", "content": "Hello\n"}]"#);
    assert_eq!(rendered("{{ {'a': [1]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
    assert_eq!(rendered("{{ strftime_now('%d %b %Y') }}"), "07 Feb 2026");
    assert_eq!(
        rendered("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"),
        "01"
    );
    assert_eq!(
        rendered(
            "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
        ),
        "3"
    );
    assert_eq!(
        rendered(
            "{{ 'a\nb' | indent(2) }} {{ [1, 2] | join('-') }} {{ 'aa' | replace('a', 'b') }} {{ '-' * 3 }}"
        ),
        "a\n  b 1-2 bb ---"
    );
    assert_eq!(rendered("{{ (true and none is none) | string + '!' }}{{ none ~ 1.0 }}"), "True!None1.0");
}

#[test]
fn without_a_date_there_is_no_clock() {
    let options = RenderOptions { date: None, ..OPTIONS };
    assert_eq!(render("{{ strftime_now is defined }}", &hello(), &options).unwrap(), "False");
    assert!(render("{{ strftime_now('%Y') }}", &hello(), &options).is_err());
}

fn refused(template: &str) -> String {
    let error = render(template, &hello(), &OPTIONS).map(|text| text.len()).unwrap_err();
    assert!(matches!(error, TokenizerError::Template(_)), "{error:?}");
    let line = error.to_string();
    assert!(
        line.starts_with("tokenizer.chat_template: ") && !line.contains('\n') && line.len() < 600,
        "{line:?}"
    );
    line
}

#[test]
fn a_template_that_refuses_says_why_and_where() {
    let line = refused("{% if true %}\n\n{{ raise_exception('roles must\n alternate') }}{% endif %}");
    assert!(line.contains("roles must alternate") && line.contains("(line 3)"), "{line}");
    assert!(refused("{% if %}").contains("line 1"));
    refused("{{ 1 +");
    refused("{% include 'x' %}");
    refused("{{ messages | nonsense }}");
    refused("{{ {} | tojson(ensure_ascii=true) }}");
    refused("{% for a in b recursive %}{% endfor %}");
}

#[test]
fn hostile_templates_end_in_errors_with_bounded_memory() {
    let before = peak_bytes();
    let double = |step: &str| {
        format!("{{% set ns = namespace(s='x') %}}{{% for i in range(60) %}}{step}{{% endfor %}}")
    };
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% macro m(a) %}{{ m(a ~ a) }}{{ m(a) }}{% endmacro %}{{ m('x') }}".to_owned(),
        "{{ 'x' * 1000000000 }}".to_owned(),
        "{{ 1000000000 * 'x' }}".to_owned(),
        format!("{{{{ [{}] }}}}", "'x' * 100000000, ".repeat(50)),
        "{{ ([1] * 100000000) | length }}".to_owned(),
        double("{% set ns.s = ns.s ~ ns.s %}"),
        double("{% set ns.s = ns.s + ns.s %}"),
        double("{% set ns.s = ns.s * 2 %}"),
        double("{% set ns.s = [ns.s, ns.s] | join('') %}"),
        double("{% set ns.s = [ns.s, ns.s] | string %}"),
        double("{% set ns.s = [ns.s, ns.s] | tojson %}"),
        double("{% set ns.s = ns.s | replace('x', 'xx') %}"),
        double("{% set ns.s = ns.s.replace('x', 'xx') %}"),
        double("{% set ns.s = 'x'.join([ns.s, ns.s]) %}"),
        double("{% set ns.s = '{}{}'.format(ns.s, ns.s) %}"),
        double("{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
        double("{% set ns.s = ns.s | map('replace', 'x', 'xx') | join %}"),
        format!("{{% set s = ['x'] %}}{}{{{{ s | length }}}}", "{% set s = s + s %}".repeat(80)),
        format!("{{% set s = [1] %}}{}{{{{ s | tojson }}}}", "{% set s = [s, s] %}".repeat(60)),
        format!("{{% set s = [1] %}}{}{{{{ s }}}}", "{% set s = [s, s] %}".repeat(60)),
        format!("{{% set s = 'x' * 100000 %}}{{% set l = [{}] %}}", "s | upper, ".repeat(450)),
        format!("{{% set s = 'x' * 100000 %}}{{% set l = [{}] %}}", "s[0:], ".repeat(450)),
        format!("{{% macro m() %}}{}{{% endmacro %}}{{% set l = [{}] %}}", "x".repeat(100_000), "m(), ".repeat(450)),
        format!("{{% for i in range(100000) %}}{}{{% endfor %}}", "x".repeat(100_000)),
        format!("{{% set s = [1] %}}{}{{{{ s == [] + s }}}}", "{% set s = (s, s) %}".repeat(60)),
        "{% set ns = namespace() %}{% for i in range(90000) %}{% set ns.s = [ns.s] %}{% endfor %}".to_owned(),
        "{% set ns = namespace() %}{% for i in range(90000) %}{% set ns.s = {'a': ns.s} %}{% endfor %}".to_owned(),
        "{% set ns = namespace() %}{% for i in range(90000) %}{% set ns.s = namespace(s=ns.s) %}{% endfor %}".to_owned(),
        "{% set ns = namespace() %}{% for i in range(90000) %}{% set ns.s = ns.s | list | map('upper') %}{% endfor %}{{ 1 + 'a' }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.s = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.s = [ns] %}{{ ns }}".to_owned(),
        "{{ 'x' | indent(1000000000, true) }}".to_owned(),
        "{{ '{:>1000000000}'.format('x') }}".to_owned(),
        "{{ '{:{}}'.format('x', 1000000000) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ [1] | batch(1000000000, 'x') | list | length }}".to_owned(),
        "{{ [1] | slice(1000000000) | list | length }}".to_owned(),
        "{{ range(1000000000) | list | length }}".to_owned(),
        format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(50_000), "]".repeat(50_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ a{} }}}}", "|upper".repeat(40_000)),
        format!("{{{{ 'a'{} }}}}", " if a else 'a'".repeat(10_000)),
        format!("{{{{ 1{} }}}}", " ** 1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " - 1".repeat(60_000)),
        format!("{{{{ 1{} }}}}", " == 1".repeat(40_000)),
        format!("{{{{ 1{} }}}}", " and 1".repeat(40_000)),
        format!("{{{{ 1{} }}}}", " is string".repeat(20_000)),
        format!("{{{{ a{} }}}}", "[0]".repeat(60_000)),
        format!("{{{{ a{} }}}}", "()".repeat(60_000)),
        format!("{{{{ {}1{} }}}}", "a(".repeat(60_000), ")".repeat(60_000)),
        format!("{{% if x %}}{}{{% endif %}}{{{{ 1 + 'a' }}}}", "{% elif x %}".repeat(20_000)),
        format!("{{% set {}a = 1 %}}{{{{ 1 + 'a' }}}}", "(".repeat(60_000)),
        format!("{{% set a.{} = 1 %}}{{{{ 1 + 'a' }}}}", "a.".repeat(60_000)),
        format!("{{% set a{} %}}{{% endset %}}{{{{ 1 + 'a' }}}}", "|upper".repeat(30_000)),
        format!("{{% macro m({}) %}}{{% endmacro %}}{{{{ 1 + 'a' }}}}", "a=-".repeat(60_000)),
        format!("{{% for {}a in b %}}{{% endfor %}}{{{{ 1 + 'a' }}}}", "(".repeat(60_000)),
        "{% if true %}".repeat(20_000),
        "{% if true %}".repeat(10_000) + &"{% endif %}".repeat(10_000),
        "{% for a in [1] %}".repeat(6_000) + &"{% endfor %}".repeat(6_000),
        "x".repeat(300_000),
    ];
    for template in &hostile {
        let start = &template[..template.len().min(90)];
        let outcome =
            std::panic::catch_unwind(|| render(template, &hello(), &OPTIONS).map(|text| text.len()));
        let outcome = outcome.unwrap_or_else(|_| panic!("panic: {start}"));
        let error = outcome.err().unwrap_or_else(|| panic!("accepted: {start}")).to_string();
        assert!(!error.contains('\n') && error.len() < 600, "{start}: {error}");
        eprintln!("{start}: {error}");
    }
    let grown = peak_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "hostile templates took {grown} bytes");
}

/// As long and as deep as the limits allow, on the small stack of a test thread.
#[test]
fn templates_at_the_limits_do_not_overflow_the_stack() {
    let chains = [
        ".a",
        "[0]",
        "()",
        "|upper",
        " is string",
        " ** 1",
        " - 1",
        " / 1",
        " and 1",
        " == 1",
        " if 1 else 1",
    ];
    for chain in chains {
        let operators = chain.matches([' ', '.', '[', '(', '|']).count().max(1);
        let long = format!("{{{{ a{} }}}}", chain.repeat(490 / operators));
        let deep =
            format!("{{{{ {}a{}{} }}}}", "(".repeat(35), chain.repeat(440 / operators), ")".repeat(35));
        for template in [long, deep, format!("{{{{ {}1 }}}}", "- ".repeat(490)), "{% if true %}".repeat(149)]
        {
            drop(render(&template, &hello(), &OPTIONS));
        }
    }
    drop(render(&format!("{{{{ {}1 }}}}", "not ".repeat(490)), &hello(), &OPTIONS));
    drop(render(&format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(490)), &hello(), &OPTIONS));
    let nested = format!("{}x{}", "{% if true %}".repeat(120), "{% endif %}".repeat(120));
    drop(render(&nested, &hello(), &OPTIONS));
    let macros = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(20) }}";
    drop(render(macros, &hello(), &OPTIONS));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn no_text_makes_rendering_panic(parts in proptest::collection::vec(prop::sample::select(PARTS), 0..24)) {
        if let Err(error) = render(&parts.concat(), &hello(), &OPTIONS) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

const PARTS: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{#}",
    "{%-",
    "-%}",
    "{{-",
    "-}}",
    "{{+",
    "+%}",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    "\\",
    " ",
    "\n",
    "\r\n",
    "a",
    "1",
    "1.5",
    "1e-",
    ".",
    ",",
    ":",
    "=",
    "==",
    "|",
    "~",
    "+",
    "-",
    "*",
    "**",
    "/",
    "%",
    "is",
    " not ",
    " if ",
    " else ",
    " in ",
    "for x in ",
    "endfor",
    "set x = ",
    "set ",
    "endset",
    "macro m(a)",
    "endmacro",
    "call m()",
    "endcall",
    "raw",
    "endraw",
    "generation",
    "endgeneration",
    "filter upper",
    "endfilter",
    "messages",
    "[0:1]",
    "upper",
    "join",
    "é",
    "🦙",
    "\u{2028}",
    "\0",
    "namespace()",
    "range(3)",
];

#[test]
fn long_conversations_fit_the_limits() {
    let turn = |index: usize| Message {
        role: if index.is_multiple_of(2) { "user" } else { "assistant" }.to_owned(),
        content: "Some words, as people say them. ".repeat(20),
    };
    let messages: Vec<Message> = (0..4000).map(turn).collect();
    let template = "{% set ns = namespace(last='') %}{% for message in messages %}{% if loop.index0 % 2 == 0 %}\
        {% set ns.last = '[' ~ message.role + ']' %}{% endif %}{{ ns.last + message.content | trim + '\n' }}{% endfor %}";
    assert!(render(template, &messages, &OPTIONS).unwrap().len() > 4000 * 600);
}

/// The process's peak memory, 0 where the system does not say.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok())
        .map_or(0, |kb| kb * 1024)
}

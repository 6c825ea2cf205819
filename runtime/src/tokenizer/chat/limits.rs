//! What a template may use: instructions (fuel), depth, and bytes.
//!
//! Every value that a template makes is charged to one budget, which grows with the conversation;
//! what is charged is never given back, so the budget bounds memory and the time spent on large
//! values. Values are measured before they are made wherever the result can be much larger than
//! what goes in. `guard.rs` puts the calls in place.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context, escape_formatter};

use super::{Message, guard, python};
use crate::tokenizer::TokenizerError;

/// Real templates have up to 17 KB.
const TEMPLATE_BYTES_MAX: usize = 256 << 10;
const FUEL: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 2_000;
const BUDGET_BYTES: usize = 32 << 20;
const BUDGET_BYTES_PER_MESSAGE: usize = 64 << 10;
const BUDGET_PER_INPUT_BYTE: usize = 32;
/// One string or list: this much, and four times the conversation.
const VALUE_BYTES: usize = 128 << 10;
/// What an element of a list or an entry of a map is charged.
const ELEMENT_BYTES: usize = 24;
/// Values within values: how deep, and how many in all (beside four for every message).
const NEST_MAX: usize = 32;
const NODES_MAX: usize = 10_000;
/// Calls and blocks within one another.
const RECURSION_MAX: usize = 100;
/// Filters whose result has any size their arguments say, and which no chat template needs.
const REMOVED_FILTERS: &[&str] =
    &["batch", "slice", "pprint", "urlencode", "groupby", "zip", "chain", "sum", "format"];

/// The limits of one rendering.
#[derive(Clone)]
pub(super) struct Limits {
    fuel: u64,
    value_bytes_max: usize,
    nodes_max: usize,
    left_bytes: Arc<AtomicUsize>,
}

impl Limits {
    /// Limits in proportion to the conversation.
    pub(super) fn for_messages(messages: &[Message]) -> Limits {
        let input: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let per_message = BUDGET_BYTES_PER_MESSAGE.saturating_mul(messages.len());
        let bytes = BUDGET_PER_INPUT_BYTE.saturating_mul(input).saturating_add(per_message);
        Limits {
            fuel: FUEL.saturating_add(FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64)),
            value_bytes_max: input.saturating_mul(4).saturating_add(VALUE_BYTES),
            nodes_max: messages.len().saturating_mul(4).saturating_add(NODES_MAX),
            left_bytes: Arc::new(AtomicUsize::new(bytes.saturating_add(BUDGET_BYTES))),
        }
    }

    /// The template with guards in place.
    ///
    /// # Errors
    /// A template that is too large, or nested too deep.
    pub(super) fn guard_source(&self, template: &str) -> Result<String, TokenizerError> {
        if template.len() > TEMPLATE_BYTES_MAX {
            let problem = format!("{} bytes, at most {TEMPLATE_BYTES_MAX} are allowed", template.len());
            return Err(TokenizerError::Template(problem));
        }
        guard::rewrite(template).map_err(TokenizerError::Template)
    }

    /// Sets fuel and depth, and defines what the guards call.
    pub(super) fn install(&self, environment: &mut Environment<'static>) {
        environment.set_fuel(Some(self.fuel));
        environment.set_recursion_limit(RECURSION_MAX);
        for name in REMOVED_FILTERS {
            environment.remove_filter(name);
        }
        self.install_guards(environment);
        self.install_filters(environment);
        let limits = self.clone();
        environment.set_unknown_method_callback(move |state, value, name, args| {
            limits.check_method(value, name, args)?;
            python::method(state, value, name, args)
        });
        let limits = self.clone();
        environment.set_formatter(move |output, state, value| {
            if let Some(text) = value.as_str() {
                limits.charge(text.len())?;
                return escape_formatter(output, state, value);
            }
            escape_formatter(output, state, &Value::from(limits.text(value)?))
        });
    }

    fn install_guards(&self, environment: &mut Environment<'static>) {
        let limits = self.clone();
        environment.add_function(guard::KEEP, move |value: Value| limits.keep(value));
        let limits = self.clone();
        environment.add_function(guard::NEST, move |value: Value| limits.nest(value));
        let limits = self.clone();
        environment
            .add_function(guard::LOOP, move |values: Value, body: usize| limits.loop_over(values, body));
        let limits = self.clone();
        environment.add_function(guard::CONCAT, move |parts: Rest<Value>| limits.concat(&parts));
        let limits = self.clone();
        environment.add_function(guard::ADD, move |parts: Rest<Value>| {
            fold(&parts, |left, right| limits.add(left, right))
        });
        let limits = self.clone();
        environment.add_function(guard::MULTIPLY, move |parts: Rest<Value>| {
            fold(&parts, |left, right| limits.multiply(left, right))
        });
    }

    fn install_filters(&self, environment: &mut Environment<'static>) {
        let limits = self.clone();
        environment.add_filter("string", move |value: Value| limits.text(&value));
        let limits = self.clone();
        environment.add_filter("tojson", move |value: Value, options: Kwargs| {
            let json = python::to_json(&value, &options, limits.value_bytes_max)?;
            limits.charge(json.len())?;
            Ok::<_, Error>(json)
        });
        let limits = self.clone();
        environment.add_filter("join", move |values: Value, glue: Option<Value>, options: Kwargs| {
            let glue = glue.or(options.get("d")?).unwrap_or_else(|| Value::from(""));
            let attribute: Option<Value> = options.get("attribute")?;
            options.assert_all_used()?;
            limits.join(&values, &glue, attribute.as_ref())
        });
        let limits = self.clone();
        environment.add_filter("replace", move |text: Value, old: Value, new: Value| {
            let (text, old, new) = (limits.text(&text)?, limits.text(&old)?, limits.text(&new)?);
            limits.check_replace(&text, &old, &new)?;
            Ok::<_, Error>(text.replace(&old, &new))
        });
        let limits = self.clone();
        environment.add_filter("indent", move |text: Value, args: Rest<Value>, options: Kwargs| {
            limits.indent(&text, &args, &options)
        });
    }

    /// Charges what a value made of `bytes` costs.
    fn charge(&self, bytes: usize) -> Result<(), Error> {
        let spend = |left: usize| left.checked_sub(bytes);
        match self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(refusal("the template makes more text than it may")),
        }
    }

    /// Charges a value, and refuses one that is too large by itself.
    fn charge_value(&self, bytes: usize) -> Result<(), Error> {
        if bytes > self.value_bytes_max {
            return Err(refusal("the template makes a value larger than it may"));
        }
        self.charge(bytes)
    }

    /// The result of a call or filter. Lazy ones become lists: a chain of them would be a deep
    /// recursion when it is read.
    fn keep(&self, value: Value) -> Result<Value, Error> {
        match value.kind() {
            ValueKind::Iterable => self.collect(&value, 0),
            ValueKind::Map => self.nest(value),
            _ => {
                self.charge_value(size(&value))?;
                Ok(value)
            }
        }
    }

    /// Refuses values that, written out, are too deep or too many: sharing makes sixty lists a
    /// tree of 2^60, which comparing, printing and dropping would walk.
    fn nest(&self, value: Value) -> Result<Value, Error> {
        let mut nodes = 0;
        self.count_nodes(&value, 0, &mut nodes)?;
        self.charge(nodes.saturating_mul(ELEMENT_BYTES))?;
        Ok(value)
    }

    fn count_nodes(&self, value: &Value, depth: usize, nodes: &mut usize) -> Result<(), Error> {
        *nodes += 1;
        if depth > NEST_MAX || *nodes > self.nodes_max {
            return Err(refusal("the template nests values deeper or wider than it may"));
        }
        if depth > 0 && is_namespace(value) {
            return Err(refusal("a namespace within another value is not supported"));
        }
        let is_map = value.kind() == ValueKind::Map;
        if !is_map && value.kind() != ValueKind::Seq {
            return Ok(());
        }
        for item in value.try_iter()?.checked() {
            let item = item?;
            let inner = if is_map { value.get_item(&item)? } else { item };
            self.count_nodes(&inner, depth + 1, nodes)?;
        }
        Ok(())
    }

    /// The values of a loop, when as many copies of its body are affordable.
    fn loop_over(&self, values: Value, body_bytes: usize) -> Result<Value, Error> {
        let per_turn = body_bytes.saturating_add(1);
        if let Some(turns) = values.len() {
            self.charge(turns.saturating_mul(per_turn))?;
            return Ok(values);
        }
        if values.kind() != ValueKind::Iterable {
            return Ok(values);
        }
        self.collect(&values, per_turn)
    }

    /// A lazy sequence as a list, charged while it grows.
    fn collect(&self, values: &Value, bytes_each: usize) -> Result<Value, Error> {
        let mut collected = Vec::new();
        for value in values.try_iter()?.checked() {
            self.charge(bytes_each.saturating_add(ELEMENT_BYTES))?;
            collected.push(value?);
        }
        Ok(Value::from(collected))
    }

    fn add(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        self.charge_value(size(left).saturating_add(size(right)))?;
        match (left.as_str(), right.as_str()) {
            (Some(left), Some(right)) => Ok(Value::from([left, right].concat())),
            _ => evaluate("a + b", left, right),
        }
    }

    fn multiply(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        let times = |value: &Value| value.as_usize().unwrap_or(0);
        let bytes = size(left).saturating_mul(times(right)).max(size(right).saturating_mul(times(left)));
        self.charge_value(bytes)?;
        evaluate("a * b", left, right)
    }

    fn concat(&self, parts: &[Value]) -> Result<Value, Error> {
        let mut text = Bounded { text: String::new(), bytes_max: self.value_bytes_max };
        for part in parts {
            text.push_value(part)?;
        }
        self.charge(text.text.len())?;
        Ok(Value::from(text.text))
    }

    /// The value as `str()` would write it.
    fn text(&self, value: &Value) -> Result<String, Error> {
        let mut text = Bounded { text: String::new(), bytes_max: self.value_bytes_max };
        text.push_value(value)?;
        self.charge(text.text.len())?;
        Ok(text.text)
    }

    fn join(&self, values: &Value, glue: &Value, attribute: Option<&Value>) -> Result<Value, Error> {
        let mut text = Bounded { text: String::new(), bytes_max: self.value_bytes_max };
        for (index, value) in values.try_iter()?.checked().enumerate() {
            if index > 0 {
                text.push_value(glue)?;
            }
            match attribute {
                Some(attribute) => text.push_value(&value?.get_item(attribute)?)?,
                None => text.push_value(&value?)?,
            }
        }
        self.charge(text.text.len())?;
        Ok(Value::from(text.text))
    }

    fn indent(&self, text: &Value, args: &[Value], options: &Kwargs) -> Result<String, Error> {
        let option =
            |index: usize, name: &str| Ok::<_, Error>(args.get(index).cloned().or(options.get(name)?));
        let width = option(0, "width")?.map_or(Some(4), |width| width.as_usize());
        let width = width.ok_or_else(|| refusal("indent wants a number of spaces"))?;
        let first = option(1, "first")?.is_some_and(|flag| flag.is_true());
        let blank = option(2, "blank")?.is_some_and(|flag| flag.is_true());
        options.assert_all_used()?;
        let text = self.text(text)?;
        let lines = text.split('\n').count();
        self.charge_value(text.len().saturating_add(lines.saturating_mul(width)))?;
        let spaces = " ".repeat(width);
        let line = |(index, line): (usize, &str)| {
            let is_indented = if index == 0 { first } else { blank || !line.is_empty() };
            if is_indented { format!("{spaces}{line}") } else { line.to_owned() }
        };
        Ok(text.split('\n').enumerate().map(line).collect::<Vec<_>>().join("\n"))
    }

    fn check_replace(&self, text: &str, old: &str, new: &str) -> Result<(), Error> {
        let grown = text.matches(old).count().saturating_mul(new.len());
        self.charge_value(text.len().saturating_add(grown))
    }

    /// Measures string methods whose result can be much larger than the string.
    fn check_method(&self, value: &Value, name: &str, args: &[Value]) -> Result<(), Error> {
        let Some(text) = value.as_str() else { return Ok(()) };
        match (name, args) {
            ("join", [values, ..]) => self.join(values, value, None).map(|_| ()),
            ("replace", [old, new, ..]) => {
                self.check_replace(text, old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default())
            }
            ("format", _) => self.check_format(text, args),
            _ => Ok(()),
        }
    }

    /// `"{:>1000000}".format(x)`: widths beyond three digits, and computed ones, are refused.
    fn check_format(&self, format: &str, args: &[Value]) -> Result<(), Error> {
        let is_wide = format.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
        if is_wide || format.contains(":{") {
            return Err(refusal("the template formats wider than it may"));
        }
        let fields = format.matches('{').count();
        let largest = args.iter().map(size).max().unwrap_or(0).saturating_add(1000);
        self.charge_value(fields.saturating_mul(largest).saturating_add(format.len()))
    }
}

/// A string that refuses to grow beyond a limit.
struct Bounded {
    text: String,
    bytes_max: usize,
}

impl Bounded {
    fn push_value(&mut self, value: &Value) -> Result<(), Error> {
        // As Python's `str`, which capitalises these.
        let written = match value.kind() {
            ValueKind::None => self.write_str("None"),
            ValueKind::Bool if value.is_true() => self.write_str("True"),
            ValueKind::Bool => self.write_str("False"),
            _ => write!(self, "{value}"),
        };
        written.map_err(|_| refusal("the template makes a value larger than it may"))
    }
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > self.bytes_max {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// What a value costs: a string its bytes, a list or map its elements, not what they hold.
fn size(value: &Value) -> usize {
    match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0).saturating_mul(ELEMENT_BYTES),
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn fold(parts: &[Value], step: impl Fn(&Value, &Value) -> Result<Value, Error>) -> Result<Value, Error> {
    let (first, rest) = parts.split_first().ok_or_else(|| refusal("an operator without operands"))?;
    rest.iter().try_fold(first.clone(), |left, right| step(&left, right))
}

fn evaluate(expression: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    Environment::empty().compile_expression(expression)?.eval(context! { a => left, b => right })
}

fn refusal(problem: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

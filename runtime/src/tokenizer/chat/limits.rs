//! What a template may use: time, depth, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::{Environment, Error, ErrorKind, Output, State, Template, Value};

use super::python;
use crate::tokenizer::TokenizerError;

const TEMPLATE_BYTES_MAX: usize = 1 << 20;
const FUEL: u64 = 4_000_000;

pub(super) struct Limits {
    bytes_max: usize,
    used: Arc<AtomicUsize>,
}

impl Limits {
    pub(super) fn for_input(bytes: usize) -> Limits {
        Limits { bytes_max: 64 << 20, used: Arc::default() }
    }
    pub(super) fn guard_source(&self, template: &str) -> Result<String, TokenizerError> {
        Ok(template.to_owned())
    }
    pub(super) fn install(&self, environment: &mut Environment<'static>) {
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(python::method);
    }
    pub(super) fn render(&self, template: &Template<'_, '_>, context: Value) -> Result<String, Error> {
        template.render(context)
    }
}

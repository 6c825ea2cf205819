//! The prompt that MMLU is quoted with (hendrycks/test, evaluate.py). Pure.

use super::questions::{LETTERS, Question};

/// Heading, solved examples, the question, and `letter` as its answer.
pub fn answered(question: &Question, shots: &[&Question], letter: char) -> String {
    let subject = question.subject.replace('_', " ");
    let about = if subject.is_empty() { String::new() } else { format!(" about {subject}") };
    let mut text = format!("The following are multiple choice questions (with answers){about}.\n\n");
    for shot in shots {
        text.push_str(&format!("{} {}\n\n", asked(shot), LETTERS[shot.answer]));
    }
    text + &asked(question) + " " + &letter.to_string()
}

fn asked(question: &Question) -> String {
    let choices =
        LETTERS.iter().zip(&question.choices).map(|(letter, choice)| format!("\n{letter}. {choice}"));
    format!("{}{}\nAnswer:", question.text, choices.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::questions::Place;
    use super::*;

    fn question(text: &str, answer: usize) -> Question {
        Question {
            place: Place::default(),
            subject: "high_school_physics".into(),
            text: text.into(),
            choices: ["w", "x", "y", "z"].map(str::to_owned),
            answer,
        }
    }

    #[test]
    fn the_prompt_is_the_benchmarks() {
        let text = answered(&question("Q2?", 0), &[&question("Q1?", 2)], 'B');
        let wanted = "The following are multiple choice questions (with answers) about high school physics.\n\n\
            Q1?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\nQ2?\nA. w\nB. x\nC. y\nD. z\nAnswer: B";
        assert_eq!(text, wanted);
    }
}

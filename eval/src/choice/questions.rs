//! Reading of questions: MMLU's CSV (`question,A,B,C,D,answer`) and JSON lines, gzipped or not.
//!
//! Owns both layouts and their limits. Every field that is missing or of no use is an error with file and
//! line: a benchmark that skips what it cannot read measures something else. It must not know models.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use csv::StringRecord;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;

use super::ChoiceError;

/// Names of the answers.
pub const LETTERS: [char; 4] = ['A', 'B', 'C', 'D'];
/// Bytes of a file, decompressed.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a question with its answers.
const QUESTION_BYTES_MAX: usize = 1 << 20;

/// Where a question stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: line {}", self.file.display(), self.line)
    }
}

/// A question with four answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub place: Place,
    /// As in the file, or from the file's name; may be empty.
    pub subject: String,
    pub text: String,
    pub choices: [String; 4],
    /// Place of the right one, 0 to 3.
    pub answer: usize,
}

/// All questions of a file, of which there is at least one.
///
/// # Errors
/// A file that cannot be read; the first line that is no question.
pub fn read(file: &Path) -> Result<Vec<Question>, ChoiceError> {
    let failed = |source: io::Error| ChoiceError::Io { file: file.to_owned(), source };
    let mut input = BufReader::new(File::open(file).map_err(failed)?);
    let mut bytes = Vec::new();
    if input.fill_buf().map_err(failed)?.starts_with(&[0x1F, 0x8B]) {
        MultiGzDecoder::new(input).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        input.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    let bad = |line: u64, problem: String| ChoiceError::Question {
        place: Place { file: file.to_owned(), line },
        problem,
    };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(bad(1, format!("the file has more than {FILE_BYTES_MAX} bytes")));
    }
    let is_json = bytes.trim_ascii_start().first() == Some(&b'{');
    let questions = if is_json { json_lines(file, &bytes)? } else { csv(file, &bytes)? };
    if questions.is_empty() { Err(bad(1, "there is no question in it".to_owned())) } else { Ok(questions) }
}

#[derive(Deserialize)]
struct JsonQuestion {
    #[serde(default)]
    subject: Option<String>,
    question: String,
    choices: Vec<String>,
    answer: JsonAnswer,
}

/// A letter, or a place from 0 as some copies of MMLU have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum JsonAnswer {
    Letter(String),
    Place(u64),
}

fn json_lines(file: &Path, bytes: &[u8]) -> Result<Vec<Question>, ChoiceError> {
    let mut questions = Vec::new();
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        let place = Place { file: file.to_owned(), line };
        let bad = |problem: String| ChoiceError::Question { place: place.clone(), problem };
        let parsed: JsonQuestion = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        let count = parsed.choices.len();
        let choices = <[String; 4]>::try_from(parsed.choices)
            .map_err(|_| bad(format!("choices: {count}, expected 4")))?;
        let answer = match parsed.answer {
            JsonAnswer::Letter(letter) => self::answer(&letter).map_err(bad)?,
            JsonAnswer::Place(place) if place < 4 => place as usize,
            JsonAnswer::Place(place) => {
                return Err(bad(format!("answer: {place} is not a place from 0 to 3")));
            }
        };
        let subject = parsed.subject.unwrap_or_else(|| subject_of(file));
        questions.push(checked(Question {
            place: place.clone(),
            subject,
            text: parsed.question,
            choices,
            answer,
        })?);
    }
    Ok(questions)
}

/// Where the fields of a CSV stand.
struct Columns {
    question: usize,
    choices: [usize; 4],
    answer: usize,
    subject: Option<usize>,
}

/// MMLU's own files have no header and are named after their subject.
const PLAIN: Columns = Columns { question: 0, choices: [1, 2, 3, 4], answer: 5, subject: None };

fn csv(file: &Path, bytes: &[u8]) -> Result<Vec<Question>, ChoiceError> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let mut columns = PLAIN;
    let mut questions = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let line_of = |position: Option<&csv::Position>| position.map_or(1, csv::Position::line);
        let record = record.map_err(|error| ChoiceError::Question {
            place: Place { file: file.to_owned(), line: line_of(error.position()) },
            problem: error.to_string(),
        })?;
        let place = Place { file: file.to_owned(), line: line_of(record.position()) };
        if index == 0 && record.iter().any(|field| field.trim().eq_ignore_ascii_case("question")) {
            columns = Columns::of(&record)
                .map_err(|problem| ChoiceError::Question { place: place.clone(), problem })?;
            continue;
        }
        questions.push(columns.question(file, place, &record)?);
    }
    Ok(questions)
}

impl Columns {
    fn of(header: &StringRecord) -> Result<Columns, String> {
        let find = |name: &str| header.iter().position(|field| field.trim().eq_ignore_ascii_case(name));
        let must = |name: &str| find(name).ok_or_else(|| format!("the header has no column {name:?}"));
        Ok(Columns {
            question: must("question")?,
            choices: [must("A")?, must("B")?, must("C")?, must("D")?],
            answer: must("answer")?,
            subject: find("subject"),
        })
    }

    fn question(&self, file: &Path, place: Place, record: &StringRecord) -> Result<Question, ChoiceError> {
        let field = |at: usize, name: &str| {
            record.get(at).map(str::to_owned).ok_or_else(|| ChoiceError::Question {
                place: place.clone(),
                problem: format!("{name}: missing; there are {} fields", record.len()),
            })
        };
        let [a, b, c, d] = self.choices;
        let answer = field(self.answer, "answer")?;
        let answer = self::answer(&answer)
            .map_err(|problem| ChoiceError::Question { place: place.clone(), problem })?;
        checked(Question {
            subject: match self.subject {
                Some(at) => field(at, "subject")?,
                None => subject_of(file),
            },
            text: field(self.question, "question")?,
            choices: [field(a, "A")?, field(b, "B")?, field(c, "C")?, field(d, "D")?],
            answer,
            place,
        })
    }
}

fn answer(text: &str) -> Result<usize, String> {
    let letter = text.trim();
    let place = LETTERS.iter().position(|known| letter.len() == 1 && letter.starts_with(*known));
    place.ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        format!("answer: {shown:?} is not one of A, B, C, D")
    })
}

fn checked(question: Question) -> Result<Question, ChoiceError> {
    let bytes = question.text.len() + question.choices.iter().map(String::len).sum::<usize>();
    let problem = if question.text.trim().is_empty() {
        "question: empty".to_owned()
    } else if bytes > QUESTION_BYTES_MAX {
        format!("the question has {bytes} bytes; {QUESTION_BYTES_MAX} is the most")
    } else {
        return Ok(question);
    };
    Err(ChoiceError::Question { place: question.place, problem })
}

/// `anatomy_test.csv` is about anatomy.
fn subject_of(file: &Path) -> String {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    ["_test", "_val", "_dev"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;

    fn read_text(name: &str, text: &[u8]) -> Result<Vec<Question>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        read(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn every_layout_gives_the_same_questions() {
        let plain = read_text("anatomy_test.csv", b"\"Two,\nlines?\",w,x,y,z,C\nLast?,1,2,3,4,A\n").unwrap();
        assert_eq!((plain[0].text.as_str(), plain[0].answer), ("Two,\nlines?", 2));
        assert_eq!((plain[0].place.line, plain[1].place.line), (1, 3));
        assert_eq!(plain[1].subject, "anatomy");
        let headed = b"id,subject,question,A,B,C,D,answer\n9,law,Last?,1,2,3,4, A \n";
        let headed = read_text("x.csv", headed).unwrap();
        assert_eq!((headed[0].subject.as_str(), &headed[0].choices), ("law", &plain[1].choices));
        let json = b"\n{\"subject\":\"law\",\"question\":\"Last?\",\"choices\":[\"1\",\"2\",\"3\",\"4\"],\"answer\":\"A\"}\n\
            {\"question\":\"Last?\",\"choices\":[\"1\",\"2\",\"3\",\"4\"],\"answer\":3}";
        let json = read_text("anatomy_dev.jsonl", json).unwrap();
        assert_eq!((json[0].answer, json[1].answer, json[1].subject.as_str()), (0, 3, "anatomy"));
        assert_eq!(json[1].place.line, 3);
    }

    #[test]
    fn what_is_no_question_is_named_with_its_line() {
        let good = "Q?,1,2,3,4,A\n";
        let json = "{\"question\":\"Q?\",\"choices\":[\"1\",\"2\",\"3\",\"4\"],\"answer\":\"A\"}\n";
        for (text, problem) in [
            (String::new(), "line 1: there is no question"),
            (format!("{good}Q?,1,2,3,4\n"), "line 2: answer: missing; there are 5 fields"),
            (format!("{good}Q?,1,2,3,4,E\n"), "line 2: answer: \"E\""),
            (format!("{good}Q?,1,2,3,4,AB\n"), "line 2: answer: \"AB\""),
            (format!("{good} ,1,2,3,4,B\n"), "line 2: question: empty"),
            ("question,A,B,C,answer\n".to_owned(), "line 1: the header has no column \"D\""),
            (format!("{json}{{\"question\":1}}\n"), "line 2: "),
            (format!("{json}{}", json.replace("\"4\"", "\"4\",\"5\"")), "line 2: choices: 5"),
            (format!("{json}{}", json.replace("\"A\"", "4")), "line 2: answer: 4 is not a place"),
            (format!("{json}{{"), "line 2: EOF"),
        ] {
            let error = read_text("f", text.as_bytes()).unwrap_err();
            assert!(error.contains(problem) && error.contains("/f: "), "{text}: {error}");
        }
        assert!(
            read_text("f", &[&good.as_bytes()[..5], &[0xFF; 3]].concat()).unwrap_err().contains("line 1: ")
        );
        assert!(read_text("f.gz", &[0x1F, 0x8B, 0, 0]).is_err());
        assert!(read(Path::new("/no/such/file")).unwrap_err().to_string().contains("/no/such/file"));
    }
}

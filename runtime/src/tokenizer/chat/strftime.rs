//! `strftime_now(format)` for templates, on a date the caller passes in: rendering reads no clock.

use minijinja::{Error, ErrorKind};

/// A moment in civil time, as `datetime.now()` would have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Year, AD.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// Formats as Python's `strftime` in the C locale, for the fields templates use.
    pub(super) fn format(&self, format: &str) -> Result<String, Error> {
        let mut text = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            let field = characters.next().unwrap_or('%');
            let value = self.field(field).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know %{field}"))
            })?;
            text.push_str(&value);
        }
        Ok(text)
    }

    fn field(&self, field: char) -> Option<String> {
        Some(match field {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'H' => format!("{:02}", self.hour),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'B' => self.month_name().to_owned(),
            'b' => self.month_name().get(..3)?.to_owned(),
            'A' => self.weekday_name().to_owned(),
            'a' => self.weekday_name().get(..3)?.to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    fn month_name(&self) -> &'static str {
        MONTHS[usize::from(self.month.clamp(1, 12)) - 1]
    }

    /// Sakamoto's rule.
    fn weekday_name(&self) -> &'static str {
        const SHIFT: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let month = self.month.clamp(1, 12);
        let year = u32::from(self.year).saturating_sub(u32::from(month < 3));
        let days = year + year / 4 - year / 100 + year / 400;
        let day = days + SHIFT[usize::from(month) - 1] + u32::from(self.day);
        WEEKDAYS[day as usize % 7]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn dates_print_as_pythons_strftime_does() {
        let date = Date { year: 2026, month: 2, day: 7, hour: 9, minute: 5, second: 0 };
        assert_eq!(
            date.format("%A %a %d %B %b %Y %y %m %H:%M:%S %%").unwrap(),
            "Saturday Sat 07 February Feb 2026 26 02 09:05:00 %"
        );
        assert!(date.format("%Q").is_err());
    }
}

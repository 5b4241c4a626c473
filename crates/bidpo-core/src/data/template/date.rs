//! `strftime_now` for templates that tell the model the date, in UTC.

use jiff::Timestamp;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::TimeZone;

/// `SOURCE_DATE_EPOCH` (seconds since 1970) if that is set, so that a run can be reproduced on another day; else the clock.
pub(super) fn now() -> Timestamp {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|v| v.trim().parse().ok());
    fixed.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_else(Timestamp::now)
}

/// Python's `strftime` in the C locale, in UTC. An unknown directive is left as it is. `%f` is microseconds.
pub(super) fn strftime(format: &str, time: Timestamp) -> String {
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let time = BrokenDownTime::from(&time.to_zoned(TimeZone::UTC));
    // jiff writes as many digits of `%f` as there are; Python always writes six.
    let format = format.replace("%%", "%%\0").replace("%f", "%6f").replace('\0', "");
    // A lenient configuration fails only where the writer fails, and a String does not.
    time.to_string_with_config(&config, &format).unwrap_or(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(format: &str, seconds: i64) -> String {
        strftime(format, Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn dates() {
        // From GNU date: date -u -d @N '+...'.
        assert_eq!(at("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(at("%A, %B %d, %y %H:%M:%S", 951_782_399), "Monday, February 28, 00 23:59:59");
        assert_eq!(at("%a %Y-%m-%d", 951_782_400), "Tue 2000-02-29");
        assert_eq!(at("%Y-%m-%d", 1_735_689_599), "2024-12-31");
        assert_eq!(at("100%% %!", 1_735_689_600), "100% %!");
    }

    #[test]
    fn every_directive_of_python() {
        // From Python 3: datetime.fromtimestamp(1720200606, timezone.utc).strftime(...), a Friday.
        let format = "%a %A %w %d %b %B %m %y %Y %H %I %p %M %S %f %z %Z %j %U %W %G %u %V %% %%f";
        let want = "Fri Friday 5 05 Jul July 07 24 2024 17 05 PM 30 06 000000 +0000 UTC 187 26 27 2024 5 27 % %f";
        assert_eq!(at(format, 1_720_200_606), want);
        assert_eq!(at("%c|%x|%X|%-d", 1_720_200_606), "Fri Jul  5 17:30:06 2024|07/05/24|17:30:06|5");
    }
}

//! Plots as inline SVG: no script, nothing loaded from elsewhere. Widths are in user units and scale with the page.

use crate::text::escape;
use std::fmt::Write;

/// Size of a plot.
const WIDTH: f64 = 640.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// Colours that differ in lightness too: they survive a grey printer and most colour blindness (Okabe and Ito's set).
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f"];

/// A point with the ends of its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// A named series.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// By x.
    pub points: Vec<Point>,
}

/// Round numbers between `lo` and `hi`, about five.
fn ticks(lo: f64, hi: f64) -> Vec<f64> {
    let span = hi - lo;
    if !(span.is_finite() && span > 0.0) {
        return vec![lo];
    }
    let raw = span / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(10.0 * power);
    let first = (lo / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|t| *t <= hi + 1e-9 * span).collect()
}

/// A tick's text: no more digits than it needs.
fn number(x: f64) -> String {
    let text = format!("{x:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Axes from data to the page.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    height: f64,
}

impl Axes {
    fn new(xs: impl Iterator<Item = f64>, ys: impl Iterator<Item = f64>, height: f64) -> Self {
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
            let pad = if hi > lo { 0.05 * (hi - lo) } else { 0.5 * lo.abs().max(1.0) };
            (lo - pad, hi + pad)
        };
        Self { x: range(&mut { xs }), y: range(&mut { ys }), height }
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        self.height - BOTTOM - (y - self.y.0) / (self.y.1 - self.y.0) * (self.height - TOP - BOTTOM)
    }

    /// Opens the picture: frame, ticks, names of the axes.
    fn open(&self, title: &str, x_name: &str, y_name: &str) -> String {
        let h = self.height;
        let mut s = format!(
            "<svg viewBox=\"0 0 {WIDTH} {h}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>\n",
            escape(title)
        );
        for t in ticks(self.y.0, self.y.1) {
            let y = self.py(t);
            let _ = writeln!(
                s,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                number(t)
            );
        }
        for t in ticks(self.x.0, self.x.1) {
            let x = self.px(t);
            let _ = writeln!(
                s,
                "<line class=\"grid\" y1=\"{TOP}\" y2=\"{0:.1}\" x1=\"{x:.1}\" x2=\"{x:.1}\"/>\
                 <text x=\"{x:.1}\" y=\"{1:.1}\" text-anchor=\"middle\">{2}</text>",
                h - BOTTOM,
                h - BOTTOM + 16.0,
                number(t)
            );
        }
        let _ = writeln!(
            s,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            h - 10.0,
            escape(x_name),
            (TOP + h - BOTTOM) / 2.0,
            escape(y_name)
        );
        s
    }
}

fn whisker(axes: &Axes, p: &Point, colour: &str) -> String {
    let x = axes.px(p.x);
    format!(
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-opacity=\".45\"/>\
         <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n",
        axes.py(p.lo),
        axes.py(p.hi),
        axes.py(p.y)
    )
}

/// A line for each series, intervals as whiskers, `reference` as a dashed line across with its interval shaded.
pub fn curves(title: &str, x_name: &str, y_name: &str, series: &[Series], reference: Option<Point>) -> String {
    let all = || series.iter().flat_map(|s| &s.points).chain(reference.iter());
    let axes = Axes::new(all().map(|p| p.x), all().flat_map(|p| [p.lo, p.hi]), 320.0);
    let mut s = axes.open(title, x_name, y_name);
    if let Some(r) = reference {
        let _ = writeln!(
            s,
            "<rect x=\"{LEFT}\" width=\"{:.1}\" y=\"{:.1}\" height=\"{:.1}\" fill=\"#000\" fill-opacity=\".07\"/>\
             <line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#444\" stroke-dasharray=\"5 4\"/>",
            WIDTH - LEFT - RIGHT,
            axes.py(r.hi),
            axes.py(r.lo) - axes.py(r.hi),
            WIDTH - RIGHT,
            y = axes.py(r.y)
        );
    }
    for (i, one) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> = one.points.iter().map(|p| format!("{:.1},{:.1}", axes.px(p.x), axes.py(p.y))).collect();
        let _ = writeln!(
            s,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/>",
            path.join(" ")
        );
        one.points.iter().for_each(|p| s += &whisker(&axes, p, colour));
    }
    s + "</svg>\n" + &legend(series.iter().map(|s| s.name.as_str()))
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let item = |(i, name): (usize, &str)| {
        format!("<span><i style=\"background:{}\"></i>{}</span>", COLOURS[i % COLOURS.len()], escape(name))
    };
    let items: Vec<String> = names.enumerate().map(item).collect();
    if items.len() > 1 { format!("<p class=\"legend\">{}</p>\n", items.join(" ")) } else { String::new() }
}

/// A row for each named value with its interval; `reference` as a dashed line down.
pub fn intervals(title: &str, x_name: &str, rows: &[(String, Point)], reference: Option<f64>) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 190.0;
    let height = TOP + BOTTOM + ROW * rows.len() as f64;
    let xs = rows.iter().flat_map(|(_, p)| [p.lo, p.hi, p.y]).chain(reference);
    let axes = Axes::new(xs, [0.0, 1.0].into_iter(), height);
    let px = |x: f64| NAMES + (x - axes.x.0) / (axes.x.1 - axes.x.0) * (WIDTH - NAMES - RIGHT);
    let mut s = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>\n",
        escape(title)
    );
    let bottom = height - BOTTOM;
    for t in ticks(axes.x.0, axes.x.1) {
        let x = px(t);
        let _ = writeln!(
            s,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            number(t)
        );
    }
    if let Some(r) = reference {
        let x = px(r);
        let _ = writeln!(
            s,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\" stroke=\"#444\" stroke-dasharray=\"5 4\"/>"
        );
    }
    for (i, (name, p)) in rows.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        let colour = COLOURS[0];
        let _ = writeln!(
            s,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>",
            NAMES - 8.0,
            y + 4.0,
            escape(name),
            px(p.lo),
            px(p.hi),
            px(p.y)
        );
    }
    let _ = writeln!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n</svg>",
        (NAMES + WIDTH - RIGHT) / 2.0,
        height - 10.0,
        escape(x_name)
    );
    s
}

/// A density over [0, 1], the part above 1/2 shaded.
pub fn density(title: &str, x_name: &str, f: &dyn Fn(f64) -> f64) -> String {
    const STEPS: usize = 200;
    let at = |i: usize| (i as f64 + 0.5) / STEPS as f64;
    let values: Vec<(f64, f64)> = (0..STEPS).map(|i| (at(i), f(at(i)))).collect();
    let axes = Axes { x: (0.0, 1.0), y: (0.0, 1.08 * values.iter().map(|v| v.1).fold(0.0, f64::max)), height: 240.0 };
    let mut s = axes.open(title, x_name, "density");
    let point = |&(x, y): &(f64, f64)| format!("{:.1},{:.1}", axes.px(x), axes.py(y));
    let upper: Vec<String> = values.iter().filter(|v| v.0 >= 0.5).map(point).collect();
    let (half, floor) = (axes.px(0.5), axes.py(0.0));
    let _ = writeln!(
        s,
        "<polygon fill=\"{0}\" fill-opacity=\".25\" points=\"{half:.1},{floor:.1} {1} {2:.1},{floor:.1}\"/>\
         <polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"1.8\" points=\"{3}\"/>\
         <line x1=\"{half:.1}\" x2=\"{half:.1}\" y1=\"{TOP}\" y2=\"{floor:.1}\" stroke=\"#444\" stroke-dasharray=\"5 4\"/>",
        COLOURS[0],
        upper.join(" "),
        axes.px(1.0),
        values.iter().map(point).collect::<Vec<_>>().join(" ")
    );
    s + "</svg>\n"
}

/// Points in two measures, more being better in both; those that no other point beats in both are joined.
pub fn pareto(title: &str, x_name: &str, y_name: &str, points: &[(String, f64, f64)]) -> String {
    let axes = Axes::new(points.iter().map(|p| p.1), points.iter().map(|p| p.2), 320.0);
    let mut s = axes.open(title, x_name, y_name);
    let mut front: Vec<&(String, f64, f64)> = front(points);
    front.sort_by(|a, b| a.1.total_cmp(&b.1));
    let path: Vec<String> = front.iter().map(|p| format!("{:.1},{:.1}", axes.px(p.1), axes.py(p.2))).collect();
    let _ = writeln!(s, "<polyline fill=\"none\" stroke=\"{}\" points=\"{}\"/>", COLOURS[1], path.join(" "));
    for p in points {
        let on = front.iter().any(|f| f.0 == p.0);
        let _ = writeln!(
            s,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{}\" fill=\"{}\"><title>{}</title></circle>",
            axes.px(p.1),
            axes.py(p.2),
            if on { 5 } else { 3 },
            if on { COLOURS[1] } else { COLOURS[7] },
            escape(&p.0)
        );
        if on {
            let _ = writeln!(
                s,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                axes.px(p.1).clamp(LEFT + 40.0, WIDTH - 60.0),
                (axes.py(p.2) - 9.0).max(10.0),
                escape(&p.0)
            );
        }
    }
    s + "</svg>\n"
}

/// The points that no other point equals or beats in both measures while beating it in one.
pub fn front(points: &[(String, f64, f64)]) -> Vec<&(String, f64, f64)> {
    let beaten = |p: &(String, f64, f64)| points.iter().any(|q| q.1 >= p.1 && q.2 >= p.2 && (q.1 > p.1 || q.2 > p.2));
    points.iter().filter(|p| !beaten(p)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert!(ticks(-7.3, 12.9).iter().all(|t| (-7.3..=12.9).contains(t)));
        assert_eq!(ticks(2.0, 2.0), [2.0]);
        assert_eq!([number(0.6000000000000001), number(-0.0), number(25.0)], ["0.6", "0", "25"]);
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let p = |n: &str, x: f64, y: f64| (n.to_owned(), x, y);
        let points = [p("a", 1.0, 1.0), p("b", 2.0, 0.5), p("c", 1.0, 0.9), p("d", 0.5, 2.0), p("e", 2.0, 0.5)];
        let names: Vec<&str> = front(&points).iter().map(|p| p.0.as_str()).collect();
        assert_eq!(names, ["a", "b", "d", "e"]);
    }

    #[test]
    fn no_number_is_broken() {
        let point = |x| Point { x, y: 0.5, lo: 0.5, hi: 0.5 };
        let one = curves("t", "x", "y", &[Series { name: "a<b".into(), points: vec![point(0.0)] }], Some(point(0.0)));
        for picture in [
            one,
            intervals("t", "x", &[("n".into(), point(0.0))], None),
            density("t", "x", &|x| x),
            pareto("t", "x", "y", &[("n".into(), 1.0, 1.0)]),
        ] {
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            assert_eq!(picture.matches("<svg").count(), picture.matches("</svg>").count());
        }
    }
}

//! The figures on a terminal, until somebody presses q.

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};

use super::sheet::{self, Sheet};
use super::{History, Worker};
use crate::clock;

const ACCENT: Color = Color::Cyan;
const CURVES_HEIGHT: u16 = 5;

pub(super) fn run(worker: &Worker, interval: Duration, history: History) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let mut screen = Screen { worker, interval, history, held: false, silence: None };
    let ended = screen.follow(&mut terminal);
    ratatui::restore();
    ended
}

struct Screen<'a> {
    worker: &'a Worker,
    interval: Duration,
    history: History,
    held: bool,
    /// Since when the worker has not answered, and why.
    silence: Option<(Instant, String)>,
}

impl Screen<'_> {
    fn follow(&mut self, terminal: &mut DefaultTerminal) -> anyhow::Result<()> {
        let mut due = clock::now() + self.interval;
        loop {
            terminal.draw(|frame| self.draw(frame))?;
            let now = clock::now();
            if now >= due {
                if !self.held {
                    self.ask();
                }
                due = clock::now() + self.interval;
            } else if event::poll(due - now)?
                && let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                match key {
                    KeyEvent { code: KeyCode::Char('q') | KeyCode::Esc, .. }
                    | KeyEvent { code: KeyCode::Char('c'), modifiers: KeyModifiers::CONTROL, .. } => return Ok(()),
                    KeyEvent { code: KeyCode::Char(' '), .. } => self.held = !self.held,
                    _ => {}
                }
            }
        }
    }

    fn ask(&mut self) {
        match self.worker.ask() {
            Ok(stats) => {
                self.history.push(stats);
                self.silence = None;
            }
            Err(error) => {
                let since = self.silence.take().map_or_else(clock::now, |(since, _)| since);
                self.silence = Some((since, format!("{:#}", error.root_cause())));
            }
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let Some(stats) = &self.history.last else { return };
        let alarms = self.alarms(stats);
        let sheets = sheet::sheets(stats, &self.history.rates);
        let mut heights = vec![1, u16::try_from(alarms.len()).unwrap_or(1), 4, CURVES_HEIGHT];
        heights.extend(sheets.iter().map(|sheet| u16::try_from(sheet.rows.len() + 2).unwrap_or(u16::MAX)));
        let places = Layout::vertical(heights.into_iter().map(Constraint::Length)).split(frame.area());
        let held = if self.held { " · held" } else { "" };
        let heading = format!("{}{held}", sheet::heading(stats, self.worker.url()));
        frame.render_widget(Line::from(heading).bold(), places[0]);
        let alarms: Vec<Line<'_>> = alarms.into_iter().map(|alarm| Line::from(alarm).fg(Color::Red).bold()).collect();
        frame.render_widget(Paragraph::new(alarms), places[1]);
        self.draw_figures(frame, places[2]);
        self.draw_curves(frame, places[3]);
        for (sheet, place) in sheets.into_iter().zip(&places[4..]) {
            draw_sheet(frame, sheet, *place);
        }
    }

    fn alarms(&self, stats: &crate::metrics::Stats) -> Vec<String> {
        let silence = self.silence.as_ref().map(|(since, why)| {
            let seconds = (clock::now() - *since).as_secs();
            format!("no answer for {seconds} s ({why}); below is the last one")
        });
        silence.into_iter().chain(stats.health.reasons.iter().map(|reason| format!("not ready: {reason}"))).collect()
    }

    fn draw_figures(&self, frame: &mut Frame<'_>, place: Rect) {
        let Some(stats) = &self.history.last else { return };
        let figures = sheet::figures(stats, &self.history.rates);
        let spans = figures.into_iter().flat_map(|(name, value)| {
            // No break inside a figure: it is one word to the wrapping.
            let name = Span::from(format!("{} ", name.replace(' ', "\u{a0}"))).dim();
            [name, Span::from(value.replace(' ', "\u{a0}")).bold(), Span::from("   ")]
        });
        let line = Line::from(spans.collect::<Vec<_>>());
        frame.render_widget(Paragraph::new(line).wrap(Wrap { trim: true }), place);
    }

    fn draw_curves(&self, frame: &mut Frame<'_>, place: Rect) {
        let Some(stats) = &self.history.last else { return };
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2).areas(place);
        let (name, _) = sheet::latency(stats);
        let top = |curve: &std::collections::VecDeque<f64>| curve.iter().copied().fold(0.0, f64::max);
        let throughput = format!("scored, up to {}/s", sheet::rate(top(&self.history.throughput)));
        let latency = format!("{name} p99, up to {}", sheet::ms(Some(top(&self.history.latency))));
        let curves = [(left, throughput, &self.history.throughput), (right, latency, &self.history.latency)];
        for (place, title, curve) in curves {
            // The newest stand at the right end, as many as fit; eight steps a row are all that a curve can show.
            let newest = curve.iter().rev().take(usize::from(place.width)).rev();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "scaled to a curve's height")]
            let points = newest.map(|value| (value / top(curve).max(1e-9) * 1e3) as u64);
            let block = Block::new().borders(Borders::TOP).border_style(Style::new().dim()).title(title);
            let curve = Sparkline::default().data(points).max(1_000).style(ACCENT).block(block);
            frame.render_widget(curve, place);
        }
    }
}

fn draw_sheet(frame: &mut Frame<'_>, sheet: Sheet, place: Rect) {
    let Sheet { title, heads, rows } = sheet;
    let text = |(column, text): (usize, String)| {
        let side = if column == 0 { Alignment::Left } else { Alignment::Right };
        Cell::from(Line::from(text).alignment(side))
    };
    let widths = (0..heads.len()).map(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count()).chain([heads[column].len()]);
        Constraint::Length(u16::try_from(cells.max().unwrap_or(0)).unwrap_or(u16::MAX))
    });
    let widths: Vec<_> = widths.collect();
    let head = Row::new(heads.iter().map(|head| (*head).to_owned()).enumerate().map(text));
    let rows = rows.into_iter().map(|row| Row::new(row.into_iter().enumerate().map(text)));
    let block = Block::new().borders(Borders::TOP).border_style(Style::new().dim()).title(title);
    let table = Table::new(rows, widths)
        .header(head.style(Style::new().add_modifier(Modifier::DIM)))
        .column_spacing(2)
        .block(block);
    frame.render_widget(table, place);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::metrics::{HealthStats, MemoryPoolSnapshot, Metrics, QueueSight, Sights, Stats};

    /// A worker with one model, which has scored so many requests.
    fn stats(metrics: &Metrics, scored: u64) -> Stats {
        metrics.model("m").scored.inc_by(scored);
        let level = |priority| QueueSight { model: "m".to_owned(), priority, depth: 7 * priority, oldest: None };
        let model = serde_json::json!({"name": "m", "version": 1, "kind": "onnx", "backend": "runtime", "compiled": false,
            "sha256": "", "features": ["a"], "outputs": 1});
        let pool = MemoryPoolSnapshot::new(&[]);
        let models = vec![serde_json::from_value(model).unwrap()];
        let sights = Sights { pool, waiting: 21, queues: vec![level(1), level(2)], models };
        let health = HealthStats { live: true, ready: true, reasons: Vec::new() };
        Stats::new(metrics, &sights, health, clock::now())
    }

    fn drawn(screen: &Screen<'_>, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 30)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    #[test]
    fn a_screen_shows_rates_queues_and_a_worker_that_fell_silent() {
        let metrics = Metrics::new();
        let worker = Worker::new("http://host:1").unwrap();
        let mut history = History::default();
        let mut first = stats(&metrics, 100);
        first.uptime_s = 10.0;
        history.push(first);
        let mut second = stats(&metrics, 500);
        second.uptime_s = 12.0;
        history.push(second);
        let interval = Duration::from_secs(1);
        let mut screen = Screen { worker: &worker, interval, history, held: false, silence: None };
        let text = drawn(&screen, 120);
        assert!(text.contains("ready · up 12s · http://host:1"), "{text}");
        let queue = text.lines().find(|line| line.starts_with("m  ") && line.contains("14")).unwrap_or_default();
        assert_eq!(queue.split_whitespace().collect::<Vec<_>>(), ["m", "2", "14", "-", "-", "-"], "{text}");
        assert!(text.replace('\u{a0}', " ").contains("scored 250/s"), "{text}");
        assert!(text.contains('█'), "a curve: {text}");
        screen.silence = Some((clock::now(), "refused".to_owned()));
        assert!(drawn(&screen, 120).contains("no answer for 0 s (refused)"));
        // Nothing panics where there is no room.
        for width in [1, 10, 40] {
            drawn(&screen, width);
        }
    }
}

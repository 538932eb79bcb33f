use std::io::{self, Write};

use super::super::list::write_aligned;
use super::report::Report;

/// Both results side by side, with the ratio of the later one to the earlier one.
pub(super) fn write(out: &mut impl Write, earlier: &Report, now: &Report) -> io::Result<()> {
    let head = ["measured", "earlier", "now", "now / earlier"].map(str::to_owned);
    let rows = FIGURES.iter().filter_map(|(name, figure)| {
        let (before, after) = (figure(earlier)?, figure(now)?);
        let ratio = if before > 0.0 { format!("{:.2}", after / before) } else { "-".to_owned() };
        Some([(*name).to_owned(), format!("{before:.1}"), format!("{after:.1}"), ratio])
    });
    write_aligned(out, &std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// What was not the same in both, so that a ratio may not mean what one thinks: `device: cpu, 2 threads, avx2, now …`. The
/// earlier one may be anybody's file, so what a terminal would obey is escaped.
pub(super) fn differences(earlier: &Report, now: &Report) -> Vec<String> {
    let settings = CONDITIONS.iter().filter_map(|(name, condition)| {
        let (before, after) = (condition(earlier)?, condition(now)?);
        (before != after)
            .then(|| format!("{name}: {}, now {}", before.escape_debug(), after.escape_debug()))
    });
    settings.collect()
}

type Of<T> = fn(&Report) -> Option<T>;

const FIGURES: &[(&str, Of<f64>)] = &[
    ("prefill, tok/s", |report| Some(report.prefill_tokens_per_second)),
    ("decode, tok/s", |report| Some(report.decode_tokens_per_second)),
    ("memory, GB/s", |report| report.memory_bytes_per_second.map(|bytes| bytes as f64 / 1e9)),
    ("share of it, %", |report| report.memory_share.map(|share| share * 100.0)),
    ("first token, ms", |report| Some(report.first_token_ms)),
    ("load, ms", |report| Some(report.load_ms as f64)),
    ("cold first token, ms", |report| report.cold_first_token_ms),
    ("peak host memory, MB", |report| Some(report.peak_rss_mb)),
];

const CONDITIONS: &[(&str, Of<String>)] = &[
    ("model", |report| Some(report.model.clone())),
    ("its bytes", |report| Some(report.model_bytes.to_string())),
    ("device", |report| Some(report.device.clone())),
    ("CPU", |report| report.cpu.clone()),
    ("cores", |report| Some(report.cores.to_string())),
    ("system", |report| Some(format!("{} on {}", report.os_version, report.arch))),
    // Not by their type: the default one may be the one that was named.
    ("bytes kept of a token", |report| Some(report.kv_bytes_per_token?.to_string())),
    ("stock kernels", |report| Some(report.stock_kernels?.to_string())),
    ("context", |report| Some(report.context?.to_string())),
    ("streams", |report| Some(report.streams.to_string())),
    ("tokens of the prompt", |report| Some(report.prompt_tokens.to_string())),
    ("tokens generated", |report| Some(report.generated_tokens.to_string())),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            model: "smollm2".to_owned(),
            family: "llama".to_owned(),
            model_bytes: 96_000_000,
            device: "cpu, 2 threads, avx2".to_owned(),
            kv_cache_type: None,
            kv_bytes_per_token: None,
            stock_kernels: None,
            context: None,
            streams: 1,
            prompt_tokens: 512,
            generated_tokens: 64,
            repeat: 3,
            prefill_tokens_per_second: 600.0,
            prefill_tokens_per_second_range: None,
            decode_tokens_per_second: 80.0,
            decode_tokens_per_second_range: None,
            first_token_ms: 800.0,
            first_token_ms_range: None,
            cold_first_token_ms: None,
            decode_bytes_per_token: None,
            memory_bytes_per_second: None,
            memory_share: None,
            peak_rss_mb: 250.0,
            load_ms: 0,
            version: "0.1.0".to_owned(),
            os: "linux".to_owned(),
            os_version: "Linux 6.1".to_owned(),
            arch: "x86_64".to_owned(),
            cpu: None,
            cores: 2,
        }
    }

    #[test]
    fn figures_that_both_have_stand_side_by_side() {
        let earlier = report();
        let now = Report {
            decode_tokens_per_second: 120.0,
            memory_share: Some(0.5),
            load_ms: 7,
            ..report()
        };
        let mut out = Vec::new();
        write(&mut out, &earlier, &now).unwrap();
        let expected = "\
measured              earlier  now    now / earlier
prefill, tok/s        600.0    600.0  1.00
decode, tok/s         80.0     120.0  1.50
first token, ms       800.0    800.0  1.00
load, ms              0.0      7.0    -
peak host memory, MB  250.0    250.0  1.00
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn other_conditions_are_named_and_other_versions_and_repetitions_are_none() {
        let earlier = Report { cpu: Some("Xeon".to_owned()), ..report() };
        let now = Report { repeat: 9, version: "0.2.0".to_owned(), ..report() };
        assert_eq!(differences(&earlier, &now), [""; 0]);
        let now = Report {
            cpu: Some("EPYC".to_owned()),
            device: "cpu, 1 thread, avx2".to_owned(),
            prompt_tokens: 16,
            ..report()
        };
        assert_eq!(
            differences(&earlier, &now),
            [
                "device: cpu, 2 threads, avx2, now cpu, 1 thread, avx2",
                "CPU: Xeon, now EPYC",
                "tokens of the prompt: 512, now 16",
            ]
        );
    }

    #[test]
    fn settings_are_conditions_where_both_know_them() {
        let now = Report {
            kv_cache_type: Some("q8_0".to_owned()),
            kv_bytes_per_token: Some(12240),
            stock_kernels: Some(true),
            context: Some(2048),
            ..report()
        };
        assert_eq!(differences(&report(), &now), [""; 0], "before reports had them");
        let earlier = Report {
            kv_cache_type: Some("f16".to_owned()),
            kv_bytes_per_token: Some(23040),
            stock_kernels: Some(false),
            context: Some(8192),
            ..report()
        };
        assert_eq!(
            differences(&earlier, &now),
            [
                "bytes kept of a token: 23040, now 12240",
                "stock kernels: false, now true",
                "context: 8192, now 2048",
            ]
        );
    }

    #[test]
    fn a_foreign_report_does_not_command_the_terminal() {
        let earlier = Report { model: "\u{1b}]0;owned\u{7}\u{202e}".to_owned(), ..report() };
        assert_eq!(
            differences(&earlier, &report()),
            ["model: \\u{1b}]0;owned\\u{7}\\u{202e}, now smollm2"]
        );
    }
}

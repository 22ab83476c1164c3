//! A worker on a real Kafka broker, as a process of its own: what it answers, what it commits, and what is left of a
//! stream when it is killed. Scores are compared with those of LightGBM's own Python package, made in the same run.
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

#[path = "kafka/addresses.rs"]
mod addresses;
#[path = "kafka/bad_input.rs"]
mod bad_input;
#[path = "kafka/crossings.rs"]
mod crossings;
#[path = "kafka/ends.rs"]
mod ends;
#[path = "kafka/exactly_once.rs"]
mod exactly_once;
#[path = "kafka/head_of_line.rs"]
mod head_of_line;
#[path = "kafka/hostile.rs"]
mod hostile;
#[path = "kafka/kills.rs"]
mod kills;
#[path = "kafka/failing.rs"]
mod failing;
#[path = "kafka/group.rs"]
mod group;
#[path = "kafka/reload.rs"]
mod reload;
#[path = "kafka/kinds.rs"]
mod kinds;
#[path = "kafka/metadata.rs"]
mod metadata;
#[path = "kafka/overload.rs"]
mod overload;
#[path = "kafka/python.rs"]
mod python;
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use support::{Higgs, Kafka};

/// The broker that the tests share, and the data.
struct Shared {
    kafka: Kafka,
    higgs: Higgs,
}

/// A worker.toml for one route from `{name}-in` to `{name}-out`, with more of `[kafka]`, `[[route]]` and `[[model]]`.
struct Toml<'a> {
    name: &'a str,
    kafka: &'a str,
    route: &'a str,
    model: &'a str,
}

impl<'a> Toml<'a> {
    fn new(name: &'a str) -> Self {
        Self { name, kafka: "", route: "", model: "" }
    }

    fn text(&self, brokers: &str) -> String {
        let Self { name, kafka, route, model } = self;
        let path = Higgs::model();
        let path = path.display();
        format!(
            "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{name}\"\n{kafka}\n[[route]]\ninput = [\"{name}-in\"]\n\
             reply_topic = \"{name}-out\"\n{route}\n[[model]]\nname = \"higgs\"\npath = \"{path}\"\n{model}\n"
        )
    }
}

impl Shared {
    /// Creates `{name}-in` and `{name}-out`.
    fn topics(&self, name: &str, partitions: i32) -> (String, String) {
        let (input, output) = (format!("{name}-in"), format!("{name}-out"));
        self.kafka.create(&[&input, &output], partitions);
        (input, output)
    }
}

/// The keys of worker.toml that the promises of a stream are chosen by, in one place.
#[derive(Clone, Copy)]
struct Promise {
    delivery: &'static str,
    ordering: &'static str,
}

/// The defaults.
const EXACTLY_ONCE: Promise = Promise { delivery: "exactly_once", ordering: "none" };

impl Promise {
    /// Lines of `[kafka]`.
    fn lines(self) -> String {
        let Self { delivery, ordering } = self;
        format!("delivery = \"{delivery}\"\nordering = \"{ordering}\"\n")
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two cores: one for the broker.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2));
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    let shared = Arc::new(Shared { kafka: Kafka::start(), higgs: Higgs::load() });
    libtest_mimic::run(&arguments, trials(Some(&shared))).exit_code()
}

fn trials(shared: Option<&Arc<Shared>>) -> Vec<Trial> {
    let trial = |name: &str, test: fn(&Shared)| {
        let shared = shared.cloned();
        Trial::test(name, move || {
            test(&shared.expect("a broker"));
            Ok(())
        })
    };
    vec![
        trial("bad_input_gets_its_error_reply_and_the_neighbours_their_scores", bad_input::each_gets_its_error),
        trial("a_compacted_topics_tombstone_is_skipped", bad_input::tombstones_are_skipped),
        trial("a_model_that_fails_answers_with_an_error", bad_input::a_failing_model_answers),
        trial("a_record_that_ends_the_worker_is_scored_three_times_at_most", failing::crash_loop),
        trial("a_transient_error_is_tried_again", failing::retried),
        trial("a_deadline_that_passes_is_answered", bad_input::deadlines_are_answered),
        trial("each_kind_of_model_scores_as_its_own_library", kinds::each_scores_as_its_library),
        trial("python_models_score_as_python_says", python::each_scores_as_python),
        trial("python_models_that_misbehave_fail_alone", python::misdeeds),
        trial("five_hundred_reloads_under_load", reload::five_hundred_under_load),
        trial("models_are_exchanged_by_watch_and_by_hand", reload::by_watch_and_by_hand),
        trial("replies_go_where_the_request_says_if_it_may", addresses::reply_headers),
        trial("a_bad_reply_address_stops_nobody", addresses::bad_addresses),
        trial("replies_too_large_together_go_out_in_smaller_batches", addresses::small_batches),
        trial("a_reply_that_a_compacted_topic_refuses_stops_nobody", addresses::compacted_topics),
        trial("one_hundred_thousand_records_one_worker_killed", exactly_once::one_worker_killed),
        trial("the_demos_checker_can_fail", exactly_once::the_checker_can_fail),
        trial("killed_at_each_step_of_a_transaction", exactly_once::killed_at_each_step),
        trial("a_commit_whose_answer_is_lost_doubles_nothing", exactly_once::a_lost_answer),
        trial("the_judges_can_fail", |_| support::checks::can_fail()),
        trial("killed_at_random_nothing_is_lost_or_doubled", kills::at_random),
        trial("killed_at_random_a_worker_that_lies_is_seen", kills::liars),
        trial("killed_at_random_with_the_cache_on", kills::cached),
        trial("killed_at_random_at_least_once_loses_nothing", kills::at_least_once),
        trial("killed_at_random_each_key_keeps_its_order", kills::order_of_keys),
        trial("killed_at_random_each_partition_keeps_its_order", kills::order_of_partitions),
        trial("without_an_order_there_is_none", kills::no_order),
        trial("twice_the_load_is_survived", overload::is_survived),
        trial("a_slow_record_holds_nobody_back", head_of_line::flows),
        trial("killed_beside_a_slow_record", head_of_line::killed),
        trial("one_hostile_sender_among_good_ones", hostile::errors),
        trial("replies_too_large_for_their_topic_cost_little", hostile::too_large),
        trial("one_hostile_sender_and_dead_letters", hostile::dead_letters),
        trial("a_group_of_other_clients_is_taken_over", metadata::taken_over),
        trial("the_set_of_a_parallel_consumer_is_read", metadata::parallel_consumer),
        trial("an_offset_map_of_a_later_version_is_refused", metadata::unknown_version),
        trial("the_offset_map_goes_with_its_position", metadata::map_is_read),
        trial("a_damaged_offset_map_stops_its_partition", metadata::damaged),
        trial("an_offset_map_of_another_position_is_ignored", metadata::stale),
        trial("aborted_input_is_not_answered", metadata::aborted_input),
        trial("lag_reads_zero_behind_control_records", metadata::idle_position),
        trial("deleted_records_are_counted_and_passed", metadata::deleted_records),
        trial("holes_of_a_compacted_topic_hold_nobody_back", metadata::compacted_input),
        trial("workers_come_and_go_while_the_stream_flows", group::cooperative),
        trial("workers_come_and_go_by_the_eager_protocol", group::eager),
        trial("workers_come_and_go_by_the_brokers_protocol", group::brokers_own),
        trial("workers_come_and_go_at_least_once", group::at_least_once),
        trial("partitions_that_are_added_start_at_their_oldest_record", group::partitions_added),
        trial("a_topic_that_is_made_anew_starts_anew", group::topic_recreated),
        trial("a_position_past_the_end_stops_its_partition", group::position_past_the_end),
        trial("two_shards_are_two_members", group::shards),
        trial("records_of_kafka_are_answered_on_nats_once", crossings::kafka_to_nats),
        trial("records_of_nats_are_answered_on_kafka", crossings::nats_to_kafka),
        trial("a_topic_that_is_made_anew_is_answered_from_its_start", crossings::topic_made_anew),
        trial("a_file_scores_the_same_as_the_worker", exactly_once::same_as_score),
        trial("sigterm_drains", ends::sigterm_drains),
        trial("a_drain_that_is_cut_short_loses_nothing", ends::cut_short),
        trial("a_second_worker_of_the_same_name_fences_the_first", ends::fenced),
        trial("start_says_where_a_new_group_begins", ends::start),
        trial("a_broker_that_is_away_is_waited_for", ends::broker_away),
        trial("a_missing_reply_topic_is_waited_for", ends::missing_reply_topic),
        trial("the_admin_port_answers", ends::admin),
        trial("what_is_wrong_before_the_start_has_its_exit_code", ends::exit_codes),
    ]
}

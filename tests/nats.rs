//! On a real NATS server, as a process of its own: how a worker connects to it, and what its streams promise.
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

#[path = "nats/batches.rs"]
mod batches;
#[path = "nats/claims.rs"]
mod claims;
#[path = "nats/clogged.rs"]
mod clogged;
#[path = "nats/connect.rs"]
mod connect;
#[path = "nats/demo.rs"]
mod demo;
#[path = "nats/faults.rs"]
mod faults;
#[path = "nats/jetstream.rs"]
mod jetstream;
#[path = "nats/jwt.rs"]
mod jwt;
#[path = "nats/kills.rs"]
mod kills;
#[path = "nats/log_in.rs"]
mod log_in;
#[path = "nats/refusals.rs"]
mod refusals;
#[path = "nats/service.rs"]
mod service;
#[path = "nats/shared.rs"]
mod shared;
#[path = "nats/steps.rs"]
mod steps;
mod support;
#[path = "nats/tls.rs"]
mod tls;

use std::path::Path;
use std::process::ExitCode;

use forebay::client::nats::NatsConnection;
use forebay::config::{Config, NatsSettings, ProcessEnvironment};
use futures_util::StreamExt as _;
use libtest_mimic::{Arguments, Trial};
use support::nats::until_async;

/// What a worker.toml with these lines under `[nats]` says; relative paths are taken from `folder`.
fn settings(servers: &str, lines: &str, folder: &Path) -> NatsSettings {
    let text = format!(
        "instance = \"w\"\n[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"in\"]\nreply_topic = \"out\"\n\
         [[model]]\nname = \"m\"\npath = \"m\"\n[nats]\nservers = \"{servers}\"\nping_interval = \"500ms\"\n{lines}\n"
    );
    let config = Config::from_toml(&text, "worker.toml", folder, &ProcessEnvironment).unwrap();
    config.nats.unwrap().connection
}

/// Waits until the connection is there, and a message comes back over it.
async fn works(connection: &NatsConnection) {
    until_async("a connection", || connection.is_connected()).await;
    assert_eq!(connection.last_error(), None);
    let client = connection.client();
    let mut probe = client.subscribe("probe").await.unwrap();
    client.publish("probe", "there".into()).await.unwrap();
    assert_eq!(probe.next().await.unwrap().payload, "there");
}

/// Waits until the connection is lost, or was never made, for this.
async fn fails(connection: &NatsConnection, wanted: &str) {
    // On a busy machine a time-out may come before the reason.
    let is_for = || connection.last_error().is_some_and(|error| error.contains(wanted));
    until_async(&format!("\"{wanted}\", and not a connection"), is_for).await;
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2));
    libtest_mimic::run(&arguments, trials()).exit_code()
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// With `FOREBAY_RUNS` set the faults alone, each so often; `FOREBAY_KILLS` is then how often each of the others strikes.
fn trials() -> Vec<Trial> {
    if let Ok(runs) = std::env::var("FOREBAY_RUNS") {
        return faults(runs.parse().unwrap());
    }
    let mut trials = vec![
        trial("an_atomic_batch_is_there_as_a_whole_or_not_at_all", batches::whole_or_not_at_all),
        trial("a_stale_fence_refuses_a_whole_batch", batches::stale_fence),
        trial("a_server_that_was_killed_has_its_stream", batches::killed),
        trial("a_server_that_goes_and_comes_is_waited_for", connect::waited_for),
        trial("a_dead_server_among_several_is_passed_over", connect::several_servers),
        trial("a_server_that_hangs_is_left", connect::hanging),
        trial("a_server_that_sends_its_clients_away_is_left", connect::lame_duck),
        trial("a_user_logs_in_by_password", log_in::password),
        trial("a_user_logs_in_by_token", log_in::token),
        trial("a_user_logs_in_by_nkey", log_in::nkey),
        trial("a_key_in_a_file_is_exchanged_while_the_worker_runs", log_in::nkey_file),
        trial("a_user_logs_in_by_credentials", log_in::credentials),
        trial("a_server_is_known_by_its_certificate", tls::server_certificate),
        trial("a_server_that_does_not_encrypt_is_refused", tls::not_encrypted),
        trial("a_worker_is_known_by_its_certificate", tls::client_certificate),
        trial("encryption_before_the_first_word", tls::first),
        trial("records_of_a_stream_are_answered_once", jetstream::flows),
        trial("three_workers_share_partitions", jetstream::three_workers),
        trial("streams_that_cannot_hold_the_promise_are_refused", faults::set_up_checks),
        trial("replies_go_where_the_request_says_if_the_stream_takes_that", faults::addresses),
        trial("partitions_that_nobody_reads_any_more_are_missed", claims::fewer_partitions),
        trial("a_checkpoint_that_is_gone_early_is_missed", claims::checkpoint_gone_early),
        trial("a_consumer_that_cannot_be_made_is_said", claims::consumer_refused),
        trial("a_worker_that_leaves_says_so", claims::leaving),
        trial("a_quiet_partition_has_lost_nothing", claims::quiet_partition),
        trial("superseded_checkpoints_are_removed", claims::superseded),
        trial("a_stream_that_takes_smaller_messages", refusals::smaller_messages),
        trial("a_full_stream_is_waited_for", refusals::full_stream),
        trial("a_stream_that_is_away_is_waited_for", refusals::stream_away),
        trial("a_dead_letter_that_no_stream_takes", refusals::letter_without_a_stream),
        trial("headers_that_no_server_takes", refusals::headers_too_large),
        trial("two_groups_share_a_stream_of_replies", shared::two_groups),
        trial("what_a_leaving_worker_has_is_given_back", shared::given_back),
        trial("killed_workers_that_lie_are_seen", kills::liars),
        trial("the_demo_counts_every_reply", demo::one_worker_killed),
        trial("the_demo_can_fail", demo::can_fail),
        trial("a_service_is_discovered", service::discovered),
        trial("a_service_scores_as_the_library_does", service::scores),
        trial("a_request_that_cannot_be_scored_is_answered_with_why", service::errors),
        trial("a_service_answers_open_inference_requests_in_their_own_form", service::open_inference),
        trial("a_service_keeps_deadlines_and_priorities", service::deadlines_and_priorities),
        trial("a_reply_that_the_server_does_not_take_is_an_error", service::large_reply),
        trial("an_overloaded_service_says_so_at_once", service::overload),
        trial("answers_that_a_service's_server_does_not_take_are_dropped", clogged::answers_not_taken),
        trial("a_flooded_service_counts_what_it_drops", clogged::flooded),
        trial("workers_share_the_requests", service::shared),
        trial("a_service_outlives_its_server", service::server_killed),
        trial("a_service_that_may_not_subscribe_is_not_ready", service::refused),
        trial("a_service_drains_without_a_lost_request", service::drained),
        trial("a_service_that_cannot_hear_itself_drains_too", service::drained_unheard),
    ];
    trials.extend(faults(1));
    trials
}

/// The fault rows of JetStream.
fn faults(runs: usize) -> Vec<Trial> {
    let again = |name: &'static str, test: fn()| {
        Trial::test(name, move || {
            for run in 1..=runs {
                test();
                if runs > 1 {
                    println!("{name}: {run} of {runs}");
                }
            }
            Ok(())
        })
    };
    vec![
        again("a_stale_holder_of_a_partition_is_refused", faults::zombie),
        again("a_stale_holder_without_a_fence_doubles", steps::zombie_unfenced),
        again("a_worker_killed_at_each_step_doubles_nothing", steps::killed_at_each),
        again("an_answer_that_is_lost_doubles_nothing", steps::lost_answer),
        again("an_answer_that_is_lost_without_a_fence_doubles", steps::lost_answer_unfenced),
        again("lost_acknowledgements_double_nothing", faults::lost_acknowledgements),
        again("a_slow_record_does_not_come_again", faults::slow_head),
        again("a_stream_that_is_made_anew_starts_anew", faults::stream_recreated),
        again("a_stream_that_lost_its_end_is_stopped", claims::stream_set_back),
        again("a_checkpoint_that_is_gone_stops_its_partition", faults::checkpoint_evicted),
        again("past_the_duplicate_window", faults::duplicate_window),
        again("workers_share_a_consumer", faults::shared_consumer),
        trial("a_worker_that_stood_still_doubles_nothing", faults::stopped_and_continued),
        trial("connections_that_are_cut_lose_and_double_nothing", steps::connections_cut),
        trial("workers_killed_at_random_lose_and_double_nothing", kills::workers),
        trial("a_server_killed_at_random_loses_and_doubles_nothing", kills::server),
    ]
}

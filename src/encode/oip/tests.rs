//! Replies of the Open Inference Protocol to the byte, read back as their types, and next to native ones of the same batch.

use super::super::tests::{batch, encode, tickets};
use super::super::{Encoder, InferReplyBody, Prediction, ReplyBody};
use super::*;
use crate::record::{ErrorCode, Reply};

/// Two rows of the model's two features.
const TENSOR: &str = r#"{"id":"o\"1","inputs":[{"name":"x","shape":[2,2],"datatype":"FP64","data":[1,2,3,4]}]}"#;
const ROWS: &str = r#"{"id":"n1","features":[[1,2],[3,4]]}"#;

/// The payload, read as the reply's type and found to say the same.
fn text(reply: &Reply) -> &str {
    let text = std::str::from_utf8(&reply.payload).unwrap();
    let body: InferReplyBody = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&body).unwrap(), text);
    match body {
        InferReplyBody::Scored(_) => assert_eq!(reply.error, None),
        InferReplyBody::Failed(body) => {
            let reject = reply.error.as_ref().unwrap();
            assert_eq!((&body.error, &*body.parameters.code), (&reject.message, reject.code.as_str()));
        }
    }
    text
}

#[test]
fn three_levels_of_metadata() {
    let of = |level| {
        let replies = encode(batch(tickets(&[TENSOR]), vec![0.973, -1.5, 2.0, 5e-324], 2), level);
        text(&replies[0]).to_owned()
    };
    let scores = r#"{"model_name":"higgs","model_version":"3","id":"o\"1","outputs":[{"name":"predict","datatype":"FP64","shape":[2,2],"data":[0.973,-1.5,2.0,5e-324]}]"#;
    assert_eq!(of(ReplyMetadata::None), format!("{scores}}}"));
    let short = r#""batch_size":64,"queue_ms":0.4,"inference_ms":12.0,"cache_hit":false"#;
    assert_eq!(of(ReplyMetadata::Short), format!("{scores},\"parameters\":{{{short}}}}}"));
    let bytes = [0.973_f64, -1.5, 2.0, 5e-324].map(f64::to_le_bytes).concat();
    let hash = &blake3::hash(&bytes).to_hex()[..32];
    assert_eq!(
        of(ReplyMetadata::Full),
        format!(
            r#"{scores},"parameters":{{"model_sha256":"5c1e",{short},"compiled":false,"prediction_hash":"{hash}"}}}}"#
        )
    );
}

#[test]
fn each_request_of_a_batch_has_its_own_protocol() {
    let scores: Vec<f64> = (0..8).map(f64::from).collect();
    let mut replies = Vec::new();
    // Routes 0 to 3 ask for different levels, in both protocols.
    let levels = [ReplyMetadata::Full, ReplyMetadata::Short, ReplyMetadata::None, ReplyMetadata::Full];
    let mut encoder = Encoder::new();
    for round in 0..2 {
        let mut batch = batch(tickets(&[TENSOR, ROWS, TENSOR, ROWS]), scores.clone(), 1);
        batch.batch_size = round;
        replies.clear();
        encoder.encode_batch(batch, |route| levels[route as usize], &mut replies);
        for (index, reply) in replies.iter().enumerate() {
            let own = [scores[2 * index], scores[2 * index + 1]];
            if index % 2 == 1 {
                let body: ReplyBody = serde_json::from_slice(&reply.payload).unwrap();
                assert_eq!(body.prediction, Some(Prediction::Rows(own.map(|score| vec![score]).to_vec())));
                assert_eq!(body.metadata.unwrap().batch_size, Some(round));
                continue;
            }
            let InferReplyBody::Scored(body) = serde_json::from_str(text(reply)).unwrap() else { panic!("{reply:?}") };
            assert_eq!((&*body.outputs[0].data, body.outputs[0].shape), (&own[..], [2, 1]));
            let batch_size = body.parameters.map(|parameters| parameters.batch_size.unwrap());
            assert_eq!(batch_size, Some(round).filter(|_| index == 0));
        }
    }
}

#[test]
fn errors_have_the_standards_field_and_a_code() {
    let scores = vec![1.0, f64::NAN];
    let mut failed = batch(tickets(&[TENSOR, TENSOR]), [scores, vec![0.0; 2]].concat(), 1);
    failed.outcomes[1] = Err(Reject::new(ErrorCode::ModelError, "no \"way\"\n"));
    let replies = encode(failed, ReplyMetadata::Short);
    let parameters =
        r#""parameters":{"code":"model_error","batch_size":64,"queue_ms":0.4,"inference_ms":12.0,"cache_hit":false}}"#;
    let nan = "the model answered NaN, which is no finite number";
    assert_eq!(text(&replies[0]), format!(r#"{{"id":"o\"1","error":"{nan}",{parameters}"#));
    assert_eq!(text(&replies[1]), format!(r#"{{"id":"o\"1","error":"no \"way\"\n",{parameters}"#));

    let mut expired = batch(tickets(&[TENSOR]), Vec::new(), 0);
    expired.model = None;
    expired.outcomes[0] = Err(Reject::new(ErrorCode::DeadlineExceeded, "waited 50 ms"));
    let replies = encode(expired, ReplyMetadata::Full);
    assert_eq!(
        text(&replies[0]),
        r#"{"id":"o\"1","error":"waited 50 ms","parameters":{"code":"deadline_exceeded","queue_ms":0.4}}"#
    );

    let mut bare = batch(tickets(&[TENSOR]), vec![0.0; 2], 1);
    bare.outcomes[0] = Err(Reject::new(ErrorCode::ModelError, "no"));
    let replies = encode(bare, ReplyMetadata::None);
    assert_eq!(text(&replies[0]), r#"{"id":"o\"1","error":"no","parameters":{"code":"model_error"}}"#);
}

#[test]
fn a_reject_before_the_queue_is_of_the_protocol_too() {
    let bad = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"UINT8","data":[1,256]}],"id":7}"#;
    let ticket = tickets(&[bad]).remove(0);
    let reject = ticket.request().work.clone().unwrap_err();
    let reply = Encoder::new().encode_reject(ticket, &reject);
    let message = "inputs[0].data[1]: got 256, UINT8 wants a whole number from 0 to 255 or null";
    assert_eq!(text(&reply), format!(r#"{{"id":7,"error":"{message}","parameters":{{"code":"bad_request"}}}}"#));
}

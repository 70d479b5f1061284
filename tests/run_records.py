"""Records of a run's log for the tests."""

import json


def train(step, loss=2.0, **fields):
    return {
        "kind": "train",
        "step": step,
        "loss": loss,
        "loss_classification": 0.7 * loss,
        "loss_localization": 0.3 * loss,
        "gradient_norm": 5.0 / (1 + step),
        "learning_rate": 0.05,
        **fields,
    }


def evaluation(step, value):
    return {"kind": "eval", "step": step, "mAP": value, "AP": {"cat": value}}


def write(folder, records, tail=""):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "metrics.jsonl").write_text(text)
    return folder

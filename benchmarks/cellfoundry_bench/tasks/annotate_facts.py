"""What both annotation reports say of the model and of published work."""

from __future__ import annotations

from typing import Any

UNLIKE_PUBLISHED = (
    "Accuracy and macro-F1 published for scFoundation are of Zheng68K, other cells, with other weights, "
    "fine-tuned on most "
    "of the labels; nothing here reproduces them or can be compared with them."
)


def model_rows(model: dict[str, Any], device: str) -> list[tuple[str, str]]:
    """What is known of the model, for the table of what ran."""
    trained = [
        f"{model[key]:,} {what}"
        for key, what in (
            ("training_cells", "cells to learn from"),
            ("cells_seen", "cells seen, repeats counted"),
            ("steps", "steps"),
        )
        if key in model
    ]
    return [
        (
            "Model",
            f"{model['parameters']:,} parameters; layers x width of the encoder {model['encoder']}, the decoder "
            f"{model['decoder']}",
        ),
        ("Its training", ", ".join(trained) or model.get("origin", "not recorded in its directory")),
        *(
            [
                (
                    "First gene vectors",
                    "principal components of the training cells; the twin with random weights has random ones, so "
                    "what the model has before it is trained shows in none of the rows",
                )
            ]
            if model.get("gene_start") == "components"
            else []
        ),
        ("Weights", str(model.get("weights_sha256", "not recorded"))),
        ("Device", device),
    ]

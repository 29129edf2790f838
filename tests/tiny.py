"""Settings of a model that compiles in seconds."""

MODEL = {
    "model.image_size": (32, 32),
    "model.num_frames": 4,
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.decoder_hidden_size": 16,
    "model.decoder_num_hidden_layers": 1,
    "model.decoder_num_attention_heads": 2,
    "model.decoder_intermediate_size": 32,
}

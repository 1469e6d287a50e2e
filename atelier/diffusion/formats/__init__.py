"""Files of adapters in every form that is read or written, with numpy alone.

The registry imports and exports here without torch. The trainer and inference use the same code through
`atelier.diffusion.adapter_file`, `kohya` and `words`, which only exchange arrays for tensors.

    tensor_file     tensors of a safetensors file, and writing one
    low_rank        what an update of a layer is, and whether it fits a base model
    diffusers_form  pytorch_lora_weights.safetensors
    kohya_form      the keys of sd-scripts, which A1111 and ComfyUI read too
    original_names  what Stable Diffusion's own code calls the layers of diffusers' UNets
    word_forms      learned_embeds.safetensors, and embeddings of A1111 and ComfyUI
    peft_scales     scales in metadata
    dialects        how other programs spell keys
    foreign         reading a file that was made elsewhere
"""

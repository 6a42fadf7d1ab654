"""Checkpoints that are taken for another model's, by the names they have."""

from collections.abc import Iterable
import re

# A model, and names (from the start, layers numbered) that it alone has all of.
STRANGERS = {
  'a Wan video transformer': [
    (
      r'blocks\.\d+\.self_attn\.q\.',
      r'text_embedding\.0\.',
      r'patch_embedding',
    ),
    (r'blocks\.\d+\.attn2\.to_q\.', r'condition_embedder\.text_embedder'),
  ],
  'a HunyuanVideo transformer': [
    (r'double_blocks\.\d+\.img_attn_qkv', r'single_blocks\.\d+\.linear1'),
    (r'single_transformer_blocks', r'context_embedder\.token_refiner'),
  ],
  'a FLUX transformer': [
    (r'double_blocks\.\d+\.img_attn\.qkv', r'single_blocks\.\d+\.linear1'),
    (r'single_transformer_blocks', r'context_embedder\.weight'),
  ],
  'an LTX-Video transformer': [
    (r'transformer_blocks\.\d+\.scale_shift_table', r'caption_projection'),
  ],
  'a CogVideoX transformer': [
    (r'transformer_blocks\.\d+\.norm1\.linear', r'patch_embed\.text_proj'),
  ],
  'a Wan VAE': [
    (r'encoder\.downsamples\.\d+', r'decoder\.upsamples\.\d+'),
    (r'encoder\.down_blocks\.\d+\.norm1\.gamma', r'post_quant_conv'),
  ],
  'a HunyuanVideo VAE': [
    (r'encoder\.down_blocks\.\d+\.resnets\.\d+\.conv1\.conv', r'quant_conv'),
  ],
  "Mochi's transformer (--from mochi)": [
    (r'transformer_blocks\.\d+\.attn1\.add_q_proj', r'pos_frequencies'),
    (r'blocks\.\d+\.attn\.qkv_y', r'pos_frequencies'),
  ],
  "Mochi's VAE (--from mochi_vae)": [
    (r'encoder\.block_in\.resnets', r'decoder\.conv_in'),
    (r'layers\.\d+\.layers\.\d+\.stack', r'output_norm'),
    (r'blocks\.\d+\.blocks\.\d+\.stack', r'output_proj'),
  ],
  'a T5 or UMT5 (--from t5)': [
    (r'encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias',),
  ],
  'a wav2vec 2.0, HuBERT or WavLM (--from wav2vec2)': [
    (r'feature_extractor\.conv_layers', r'encoder\.pos_conv_embed'),
  ],
  'a Whisper (--from whisper)': [
    (r'encoder\.conv1', r'encoder\.embed_positions'),
  ],
  'an AMDIM (--from amdim)': [
    (r'encoder\.module\.rkhs_block_5', r'g2l_loss'),
  ],
  'weights of this project (--from mirage)': [
    (r'blocks/video/', r'last/video/'),
    (r'encoder/proj_in/', r'decoder/proj_out/'),
    (r'dit/', r'vae/'),
  ],
}
_PREFIX = re.compile(
  r'^(model\.diffusion_model\.|model\.|transformer\.|module\.(?=blocks|double)|'
  r'wav2vec2\.|hubert\.|wavlm\.)'
)


def models(names: Iterable[str]) -> list[str]:
  """The models whose names these are, of those that are known."""
  found = [_PREFIX.sub('', n) for n in names]
  return [
    model
    for model, spellings in STRANGERS.items()
    if any(
      all(any(re.match(p, n) for n in found) for p in patterns)
      for patterns in spellings
    )
  ]

"""Places of a decoder's parameters in published files, one table per layout.

Comes in: nothing. Goes out: tables {parameter of decoder.py: Tensor}, which the
entries of families.py name. A table may hold parameters that a model lacks:
param_dims decides which are read. Reads no file: storage/hf_checkpoint.py does.
"""

from typing import NamedTuple


class Tensor(NamedTuple):
  """Place of a parameter in the safetensors files.

  `axes` are the axes in the file, separated by commas, each a product of
  dimensions (letters of types.py; T positions, 1 a dimension of size one):
  'HK,D' is a matrix of heads times head size by width. If several parameters
  are joined in one tensor, `fused` has the dimension of each of them along the
  joined axis, and `part` is the index of this one.
  """

  name: str  # {i} = the layer, {e} = the expert
  axes: str
  fused: str = ''  # '' = the tensor holds one parameter
  part: int = 0


def _linear(path, name, axes, **kwargs):
  """Entries of a linear map's kernel and bias; torch stores [out, in]."""
  bias_axes = axes.partition(',')[0]
  return {
    f'{path}/kernel': Tensor(f'{name}.weight', axes, **kwargs),
    f'{path}/bias': Tensor(f'{name}.bias', bias_axes, **kwargs),
  }


def _conv1d(path, name, axes, **kwargs):
  """Entries of a linear map as GPT-2 stores them: [in, out]."""
  bias_axes = axes.partition(',')[2]
  return {
    f'{path}/kernel': Tensor(f'{name}.weight', axes, **kwargs),
    f'{path}/bias': Tensor(f'{name}.bias', bias_axes, **kwargs),
  }


def _norm(path, name, axes='D'):
  """Entries of a norm; only the biases that a config asks for are read."""
  return {
    f'{path}/scale': Tensor(f'{name}.weight', axes),
    f'{path}/bias': Tensor(f'{name}.bias', axes),
  }


_LAYER = 'model.layers.{i}.'
LLAMA = {
  'embed/embedding': Tensor('model.embed_tokens.weight', 'V,D'),
  **_norm('layers/attention_norm', _LAYER + 'input_layernorm'),
  **_linear('layers/attention/query', _LAYER + 'self_attn.q_proj', 'HK,D'),
  **_linear('layers/attention/key', _LAYER + 'self_attn.k_proj', 'GK,D'),
  **_linear('layers/attention/value', _LAYER + 'self_attn.v_proj', 'GK,D'),
  **_linear('layers/attention/out', _LAYER + 'self_attn.o_proj', 'D,HK'),
  **_norm('layers/attention/query_norm', _LAYER + 'self_attn.q_norm', 'K'),
  **_norm('layers/attention/key_norm', _LAYER + 'self_attn.k_norm', 'K'),
  **_norm('layers/mlp_norm', _LAYER + 'post_attention_layernorm'),
  **_linear('layers/mlp/gate', _LAYER + 'mlp.gate_proj', 'F,D'),
  **_linear('layers/mlp/up', _LAYER + 'mlp.up_proj', 'F,D'),
  **_linear('layers/mlp/down', _LAYER + 'mlp.down_proj', 'D,F'),
  **_norm('final_norm', 'model.norm'),
  'head/kernel': Tensor('lm_head.weight', 'V,D'),
}
# Norms after the sublayers, and one norm over all heads of a projection.
OLMO2 = {
  **LLAMA,
  **_norm('layers/attention/query_norm', _LAYER + 'self_attn.q_norm', 'HK'),
  **_norm('layers/attention/key_norm', _LAYER + 'self_attn.k_norm', 'GK'),
  **_norm('layers/attention_post_norm', _LAYER + 'post_attention_layernorm'),
  **_norm('layers/mlp_post_norm', _LAYER + 'post_feedforward_layernorm'),
}
# Norms on both sides of the sublayers. `post_attention_layernorm` is llama's
# norm before the MLP, here the one after the attention.
GEMMA2 = {
  **LLAMA,
  **_norm('layers/attention_post_norm', _LAYER + 'post_attention_layernorm'),
  **_norm('layers/mlp_norm', _LAYER + 'pre_feedforward_layernorm'),
  **_norm('layers/mlp_post_norm', _LAYER + 'post_feedforward_layernorm'),
}
# Query, key and value in one tensor; gate and up in another.
_PHI3_QKV = {'name': _LAYER + 'self_attn.qkv_proj', 'fused': 'HGG'}
_PHI3_MLP = {'name': _LAYER + 'mlp.gate_up_proj', 'fused': 'FF'}
PHI3 = {
  **LLAMA,
  **_linear('layers/attention/query', axes='HK,D', part=0, **_PHI3_QKV),
  **_linear('layers/attention/key', axes='GK,D', part=1, **_PHI3_QKV),
  **_linear('layers/attention/value', axes='GK,D', part=2, **_PHI3_QKV),
  **_linear('layers/mlp/gate', axes='F,D', part=0, **_PHI3_MLP),
  **_linear('layers/mlp/up', axes='F,D', part=1, **_PHI3_MLP),
}


def _experts(block, router, gate, up, down):
  """Entries of a layer's experts, each with its own tensors."""
  expert = f'{_LAYER}{block}.experts.{{e}}'
  return {
    'layers/experts/router/kernel': Tensor(f'{_LAYER}{router}.weight', 'E,D'),
    'layers/experts/gate/kernel': Tensor(f'{expert}.{gate}.weight', 'F,D'),
    'layers/experts/up/kernel': Tensor(f'{expert}.{up}.weight', 'F,D'),
    'layers/experts/down/kernel': Tensor(f'{expert}.{down}.weight', 'D,F'),
  }


MIXTRAL = LLAMA | _experts(
  'block_sparse_moe', 'block_sparse_moe.gate', 'w1', 'w3', 'w2'
)
QWEN3_MOE = LLAMA | _experts(
  'mlp', 'mlp.gate', 'gate_proj', 'up_proj', 'down_proj'
)
# The experts of a layer in one tensor, as transformers 5 holds them in memory
# and as some files are saved.
_GATE_UP = {
  'name': _LAYER + 'mlp.experts.gate_up_proj',
  'axes': 'E,F,D',
  'fused': 'FF',
}
JOINED = {
  'layers/experts/gate/kernel': Tensor(part=0, **_GATE_UP),
  'layers/experts/up/kernel': Tensor(part=1, **_GATE_UP),
  'layers/experts/down/kernel': Tensor(
    _LAYER + 'mlp.experts.down_proj', 'E,D,F'
  ),
  'layers/experts/router/kernel': Tensor(_LAYER + 'mlp.gate.weight', 'E,D'),
}

_BLOCK = 'transformer.h.{i}.'
# Query, key and value side by side in one tensor.
_GPT2_QKV = {'name': _BLOCK + 'attn.c_attn', 'fused': 'HGG'}
GPT2 = {
  'embed/embedding': Tensor('transformer.wte.weight', 'V,D'),
  'positions/embedding': Tensor('transformer.wpe.weight', 'T,D'),
  **_norm('layers/attention_norm', _BLOCK + 'ln_1'),
  **_conv1d('layers/attention/query', axes='D,HK', part=0, **_GPT2_QKV),
  **_conv1d('layers/attention/key', axes='D,GK', part=1, **_GPT2_QKV),
  **_conv1d('layers/attention/value', axes='D,GK', part=2, **_GPT2_QKV),
  **_conv1d('layers/attention/out', _BLOCK + 'attn.c_proj', 'HK,D'),
  **_norm('layers/mlp_norm', _BLOCK + 'ln_2'),
  **_conv1d('layers/mlp/up', _BLOCK + 'mlp.c_fc', 'D,F'),
  **_conv1d('layers/mlp/down', _BLOCK + 'mlp.c_proj', 'F,D'),
  **_norm('final_norm', 'transformer.ln_f'),
  'head/kernel': Tensor('lm_head.weight', 'V,D'),
}
GPTJ = {
  'embed/embedding': Tensor('transformer.wte.weight', 'V,D'),
  **_norm('layers/attention_norm', _BLOCK + 'ln_1'),
  **_linear('layers/attention/query', _BLOCK + 'attn.q_proj', 'HK,D'),
  **_linear('layers/attention/key', _BLOCK + 'attn.k_proj', 'GK,D'),
  **_linear('layers/attention/value', _BLOCK + 'attn.v_proj', 'GK,D'),
  **_linear('layers/attention/out', _BLOCK + 'attn.out_proj', 'D,HK'),
  **_linear('layers/mlp/up', _BLOCK + 'mlp.fc_in', 'F,D'),
  **_linear('layers/mlp/down', _BLOCK + 'mlp.fc_out', 'D,F'),
  **_norm('final_norm', 'transformer.ln_f'),
  **_linear('head', 'lm_head', 'V,D'),
}
# Query, key and value of each head together: head, one of three, channel.
_NEOX_LAYER = 'gpt_neox.layers.{i}.'
_NEOX_QKV = {
  'name': _NEOX_LAYER + 'attention.query_key_value',
  'fused': '111',
}
NEOX = {
  'embed/embedding': Tensor('gpt_neox.embed_in.weight', 'V,D'),
  **_norm('layers/attention_norm', _NEOX_LAYER + 'input_layernorm'),
  **_linear('layers/attention/query', axes='H1K,D', part=0, **_NEOX_QKV),
  **_linear('layers/attention/key', axes='G1K,D', part=1, **_NEOX_QKV),
  **_linear('layers/attention/value', axes='G1K,D', part=2, **_NEOX_QKV),
  **_linear('layers/attention/out', _NEOX_LAYER + 'attention.dense', 'D,HK'),
  **_norm('layers/mlp_norm', _NEOX_LAYER + 'post_attention_layernorm'),
  **_linear('layers/mlp/up', _NEOX_LAYER + 'mlp.dense_h_to_4h', 'F,D'),
  **_linear('layers/mlp/down', _NEOX_LAYER + 'mlp.dense_4h_to_h', 'D,F'),
  **_norm('final_norm', 'gpt_neox.final_layer_norm'),
  'head/kernel': Tensor('embed_out.weight', 'V,D'),
}

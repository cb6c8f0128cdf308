"""Tokenizer folders for tests: tiny BPE tokenizers."""

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from dpo_jax.data.text import tokenizer

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content']"
  " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTROLS = ('<s>', '</s>', '<pad>', '<|im_start|>', '<|im_end|>')
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(controls=CONTROLS, *, controls_first=False, merges=()):
  """A tokenizer as GPT-2's: 256 bytes, the given merges, the control tokens."""
  words = [*ALPHABET, *(a + b for a, b in merges)]
  words = [*controls, *words] if controls_first else [*words, *controls]
  vocab = {word: i for i, word in enumerate(words)}
  made = tokenizers.Tokenizer(models.BPE(vocab, list(merges)))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(
    [tokenizers.AddedToken(c, normalized=False, special=True) for c in controls]
  )
  return made


def llama_like(text, *, pre_tokenizer=None, size=300):
  """A tokenizer as Llama's: '▁' for spaces and before a text, byte fallback."""
  made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>'))
  replace = normalizers.Replace(' ', '▁')
  made.normalizer = replace
  if pre_tokenizer is None:
    made.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), replace])
  else:
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizer
  made.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=['<unk>', *CONTROLS, *(f'<0x{i:02X}>' for i in range(256))],
    show_progress=False,
  )
  made.train_from_iterator([text], trainer)
  spec = json.loads(made.to_str())  # bytes are tokens, not special ones
  spec['added_tokens'] = spec['added_tokens'][: 1 + len(CONTROLS)]
  return tokenizers.Tokenizer.from_str(json.dumps(spec))


def put_before(made, token):
  """Makes the post-processor put a token before every text."""
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'{token} $A', special_tokens=[(token, made.token_to_id(token))]
  )
  return made


def save(folder: pathlib.Path, made, template=None, **config: Any):
  """Writes the folder; config goes to tokenizer_config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / 'tokenizer.json'))
  if template is not None:
    config.setdefault('chat_template', template)
  text = json.dumps(config)
  (folder / 'tokenizer_config.json').write_text(text, encoding='utf-8')
  return folder


def load(folder: pathlib.Path, made, template=None, **config: Any):
  """Saves the folder and loads its tokenizer."""
  return tokenizer.load(str(save(folder, made, template, **config)))

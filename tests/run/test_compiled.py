"""compiled: XLA's account of a step, on CPU devices and in a known text."""

import collections
import re
import types

import jax
import pytest
from commands import build

from dpo_jax import sharding
from dpo_jax.run import compiled

TEXT = """
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ar = f32[8,4]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
  %ag = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%y), dimensions={0}
}

%less (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%other (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %kernel = f32[2]{0} custom-call(%x), metadata={{
}}, metadata={}
  %one = f32[7]{0} all-reduce(%x), channel_id=4
  %same = f32[7]{0} all-reduce(%x), channel_id=4
  %aa = (f32[2]{0:T(8,128)(2,1)}, f32[2]{0}) all-to-all(%x, %y)
}

ENTRY %main (p0: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %v = (s32[], f32[8,4]) while(%w), condition=%less, body=%other
  ROOT %rs = u4[100]{0} reduce-scatter(%w), to_apply=%add
}
"""  # noqa: E501


def test_collectives_of_loops_count_by_their_trips():
  got = compiled.collectives(TEXT)
  assert got['all-reduce'] == 5 * 8 * 4 * 4 + 3 * 7 * 4
  # The operand of a start is not its result: 2 bytes of (32 + 256) / 2.
  assert got['all-gather'] == 5 * 2 * (8 * 4 + 32 * 4) / 2
  assert got['reduce-scatter'] == 50
  assert got['all-to-all'] == 3 * 2 * 8


@pytest.fixture(scope='module')
def program(tmp_path_factory):
  config = {
    'mesh.data': 2,
    'mesh.fsdp': 4,
    'model.vocab_size': 6144,
    'data.row_length': 128,
    'train.num_steps': 2,
  }
  job = build(tmp_path_factory.mktemp('compiled'), config.items())
  assert jax.device_count() == 8
  return job, compiled.lower_step(job).compile().as_text()


def test_no_device_holds_a_head_or_a_global_batch(program):
  job, text = program
  width, rows = job.model.config.width, max(job.train_plan.row_counts)
  # Neither the head nor the logits of a batch nor the states of all rows.
  assert rows >= 8
  for shape in (
    f'[6144,{width}]',
    f'[{width},6144]',
    f'[{rows},128,{width}]',
    f'[{rows},128,6144]',
    f'[{rows // 8},128,6144]',
  ):
    assert shape not in text, shape
  # A device's words of it are there: the text is that of the step.
  assert f'f32[1536,{width}]' in text


def test_a_reference_on_the_host_crosses_layer_by_layer(tmp_path):
  job = build(
    tmp_path, {'reference.offload': True, 'train.num_steps': 2}.items()
  )
  # As it is for a TPU: XLA:CPU has one memory, and no copies in it.
  text = compiled.lower_step(job, platforms=('tpu',)).as_text()
  held = job.reference.abstract
  shapes = [leaf.shape for leaf in jax.tree.leaves(held)]
  assert text.count('mhlo.memory_kind = "pinned_host"') == len(shapes)
  moved = collections.Counter(
    re.findall(r'annotate_device_placement.*: \(tensor<([\dx]*)xf32', text)
  )
  # New parameters and their two moments are said to be on the device.
  moved -= collections.Counter(map(_text, shapes * 3))
  # What is left: the matrices of one layer, the ends of the model.
  layers = [leaf.shape for leaf in jax.tree.leaves(held.pop('layers'))]
  ends = [leaf.shape for leaf in jax.tree.leaves(held)]
  # The table is the head, too.
  ends += [(259, 64)]
  one = [shape[1:] for shape in layers]
  assert moved == collections.Counter(map(_text, one + ends))


def _text(shape):
  return 'x'.join(map(str, shape))


def test_a_peak_on_the_device_leaves_out_what_is_on_the_host(monkeypatch):
  # XLA's account of a loop over 8 MiB on the host, compiled for a v5e.
  stats = types.SimpleNamespace(
    argument_size_in_bytes=4096,
    host_argument_size_in_bytes=8388608,
    peak_memory_in_bytes=11030016,
  )
  program = types.SimpleNamespace(
    memory_analysis=lambda: stats, as_text=lambda: TEXT
  )
  lowered = types.SimpleNamespace(compile=lambda: program)
  monkeypatch.setattr(compiled, 'lower_step', lambda job: lowered)
  step = compiled.compile_step(None)
  assert (step.arguments, step.peak, step.on_host) == (4096, 2641408, 8388608)


def test_meshes_that_are_no_product_of_the_torus(monkeypatch):
  def refuse(*args, **kwargs):
    raise NotImplementedError

  monkeypatch.setattr(jax, 'make_mesh', refuse)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert len({device.id for device in mesh.devices.flat}) == 8

"""Flags of XLA for programs that run once, as most of the tests' do.

They compile in a third of the time.
"""

import importlib.metadata

QUICK = [
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
]
# An XLA that does not know a flag ends the process.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  QUICK.append('--xla_cpu_use_fusion_emitters=false')

"""A headless Chromium, driven over its DevTools pipe by the standard library.

Comes in: the path of a page, the size of a window. Goes out: what the page's
script says, every message of its console, every request that it made, and
pictures.
"""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser')
_SECONDS = 30.0


class Browser:
  """One browser with one page; a context manager."""

  def __init__(self, profile: pathlib.Path):
    to_browser, self._out = os.pipe()
    self._in, from_browser = os.pipe()
    command = (
      f'exec {PROGRAM} --headless=new --no-sandbox --disable-gpu '
      f'--hide-scrollbars --no-first-run --remote-debugging-pipe '
      f'--user-data-dir={profile} about:blank 3<&{to_browser} 4>&{from_browser}'
    )
    self._process = subprocess.Popen(
      ['bash', '-c', command],
      pass_fds=(to_browser, from_browser),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._buffer, self._number = b'', 0
    self._session = None
    self.console: list[str] = []  # errors, warnings, exceptions
    self.requests: list[str] = []

  def __enter__(self):
    target = self._call('Target.createTarget', url='about:blank')['targetId']
    attached = self._call(
      'Target.attachToTarget', targetId=target, flatten=True
    )
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self._call(f'{domain}.enable')
    return self

  def __exit__(self, *error):
    self._process.terminate()
    self._process.wait(10)
    os.close(self._in)
    os.close(self._out)

  def open(self, page: pathlib.Path, width: int, height: int, dark=False):
    """Loads a page in a window of that size."""
    self._call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else ''}
    self._call('Emulation.setEmulatedMedia', features=[scheme])
    self.console.clear()
    self.requests.clear()
    self._call('Page.navigate', url=pathlib.Path(page).resolve().as_uri())
    end = time.monotonic() + _SECONDS
    while self.ask('document.readyState') != 'complete':
      assert time.monotonic() < end, 'the page does not load'
    # One more turn, so that late messages are read.
    self.ask('new Promise((done) => setTimeout(done, 100))')

  def ask(self, script: str):
    """The value of an expression in the page; promises are awaited."""
    answer = self._call(
      'Runtime.evaluate',
      expression=script,
      returnByValue=True,
      awaitPromise=True,
    )
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def press(self, key: str, code: int):
    """A key goes down and up."""
    for kind in ('keyDown', 'keyUp'):
      self._call(
        'Input.dispatchKeyEvent',
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=code,
        text='\r' if key == 'Enter' and kind == 'keyDown' else '',
      )

  def picture(self, path: pathlib.Path, whole: bool = False):
    """Writes a PNG of the window, or of the whole page."""
    shot = self._call('Page.captureScreenshot', captureBeyondViewport=whole)
    pathlib.Path(path).write_bytes(base64.b64decode(shot['data']))

  def _call(self, method: str, **params):
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._read()
      if answer.get('id') == self._number:
        assert 'error' not in answer, answer
        return answer['result']
      self._hear(answer)

  def _hear(self, event):
    """Keeps what the console and the network say."""
    params, method = event.get('params', {}), event.get('method')
    if method == 'Runtime.exceptionThrown':
      self.console.append(str(params['exceptionDetails']))
    elif method == 'Runtime.consoleAPICalled':
      self.console.append(str(params['args']))
    elif method == 'Log.entryAdded':
      self.console.append(params['entry']['text'])
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])

  def _read(self):
    end = time.monotonic() + _SECONDS
    while b'\0' not in self._buffer:
      ready, _, _ = select.select([self._in], [], [], end - time.monotonic())
      assert ready, 'the browser does not answer'
      data = os.read(self._in, 1 << 20)
      assert data, 'the browser ended'
      self._buffer += data
    line, _, self._buffer = self._buffer.partition(b'\0')
    return json.loads(line)

/** Pairs a phone and shows what becomes of it. */
const STATES = {
  waiting: 'Waiting for the phone …',
  uploading: 'The phone is uploading.',
  complete: 'The upload is complete: its run has started.',
  revoked: 'This pairing was ended.',
};
const POLL_MS = 3000;
const element = (id) => document.getElementById(id);
let shown = null; // the pairing on the screen

async function call(method, path, body) {
  const options = { method, headers: { 'Content-Type': 'application/json' }, body };
  const answer = await fetch(`api/pairings${path}`, options);
  const content = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(typeof content.detail === 'string' ? content.detail : `HTTP ${answer.status}`);
  return content;
}

async function attempt(action) {
  element('fault').hidden = true;
  try {
    await action();
  } catch (error) {
    element('fault').textContent = error.message;
    element('fault').hidden = false;
  }
}

async function refresh() {
  if (shown === null) return;
  const { state, capture_id: capture } = await call('GET', `/${shown}`);
  element('state').textContent = capture === null ? STATES[state] : `${STATES[state]} Capture: ${capture}`;
  element('revoke').hidden = state === 'complete' || state === 'revoked';
}

element('pair').onclick = () =>
  attempt(async () => {
    const pairing = await call('POST', '', '{}');
    shown = pairing.id;
    element('code').innerHTML = pairing.qr_svg;
    element('link').textContent = pairing.link;
    element('pairing').hidden = false;
    element('pair').textContent = 'Show another code';
    await refresh();
  });

element('revoke').onclick = () =>
  attempt(async () => {
    await call('DELETE', `/${shown}`);
    await refresh();
  });

setInterval(() => attempt(refresh), POLL_MS);

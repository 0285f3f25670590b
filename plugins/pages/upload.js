/** Sends one file from the browser straight into the store, by a pairing of the signed-in user's own. */
const element = (id) => document.getElementById(id);
const HEX_DIGITS = 6; // at the end of the capture's id: two files may have one name

async function call(path, body, token) {
  const headers = { 'Content-Type': 'application/json', ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(`api/${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
  const content = await answer.json();
  if (answer.ok) return content;
  const reasons = Array.isArray(content.detail) ? content.detail.map((fault) => fault.msg).join('; ') : content.detail;
  throw new Error(reasons || `HTTP ${answer.status}`);
}

function idOf(name) {
  const random = crypto.getRandomValues(new Uint8Array(HEX_DIGITS / 2));
  const hex = Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('');
  const words = name
    .toLowerCase()
    .replace(/\.[^.]*$/, '')
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '');
  return `${words.slice(0, 48) || 'scan'}-${hex}`;
}

/** PUT with progress, which fetch does not tell. */
function put(upload, file) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('PUT', upload.url);
    for (const [name, value] of Object.entries(upload.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => (element('sent').value = event.loaded / event.total);
    // 412: it is there already.
    request.onload = () =>
      request.status === 200 || request.status === 412
        ? resolve()
        : reject(new Error(`the store says ${request.status}`));
    request.onerror = () => reject(new Error('the store cannot be reached from this browser; try again'));
    request.send(file);
  });
}

function say(words) {
  element('state').textContent = words;
  element('state').hidden = false;
}

element('form').onsubmit = async (event) => {
  event.preventDefault();
  const file = element('file').files[0];
  element('fault').hidden = true;
  element('send').disabled = true;
  element('sent').hidden = false;
  try {
    const pairing = await call('pairings', {});
    const token = pairing.link.split('#pair=')[1];
    const capture = idOf(file.name);
    const announced = { capture_id: capture, name: file.name.slice(0, 200), recorded_at: new Date().toISOString() };
    await call('captures', announced, token);
    const order = { name: file.name.slice(-200), size: file.size };
    say(`Uploading as capture ${capture} …`);
    await put(await call(`captures/${capture}/source`, order, token), file);
    const unit = element('unit').valueAsNumber;
    const done = await call(
      `captures/${capture}/import`,
      { ...order, metres_per_unit: Number.isNaN(unit) ? null : unit },
      token,
    );
    if (done.run_id === null) throw new Error('the file arrived damaged; upload it again');
    say(`The upload is complete: run ${done.run_id} has started. Its first task imports the scan.`);
    element('form').reset();
  } catch (error) {
    element('state').hidden = true;
    element('fault').textContent = error.message;
    element('fault').hidden = false;
  }
  element('send').disabled = false;
  element('sent').hidden = true;
};

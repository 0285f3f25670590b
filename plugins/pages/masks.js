/** Shows the buttons while the run's review waits, and answers it through Airflow's own API, in the user's own right. */
const element = (id) => document.getElementById(id);
const review = element('masks').dataset.review;

async function show() {
  const answer = await fetch(review);
  if (!answer.ok) return; // this run asks for no review, or not yet
  const { response_received: answered, chosen_options: chosen } = await answer.json();
  element('review').hidden = answered;
  if (answered) tell(`Answered: ${chosen.join(', ')}.`);
}

async function choose(option) {
  const answer = await fetch(review, {
    method: 'PATCH',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ chosen_options: [option], params_input: {} }),
  });
  if (!answer.ok) {
    tell(answer.status === 403 ? 'You may not answer reviews of this DAG.' : `Airflow refused: HTTP ${answer.status}.`);
    return;
  }
  await show();
}

function tell(text) {
  element('answer').textContent = text;
  element('answer').hidden = false;
}

element('approve').onclick = () => choose('Approve');
element('reject').onclick = () => choose('Reject');
show();

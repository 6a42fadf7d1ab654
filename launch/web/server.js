// What all parts of the page need: elements by id, the server, complaints.

export const $ = (id) => document.getElementById(id);

export const hasEnded = (job) =>
  ['done', 'failed', 'cancelled'].includes(job.state);

export const title = (job) =>
  job.about.text_to_speech || job.about.sound || 'a recording';

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error('the server gives no answer; is it running?');
  }
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `the server says ${answer.status}`);
  return body;
}

export function complain(error) {
  $('wrong').textContent = error?.message ?? '';
  $('wrong').hidden = !error;
  if (error) $('wrong').scrollIntoView({ block: 'nearest' });
}

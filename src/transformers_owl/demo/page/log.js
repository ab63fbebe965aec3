// The conversation: `trigger` tells the server what was clicked.
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-do]');
  if (!target) return;
  const turn = target.closest('[data-turn]');
  const does = target.dataset.do;
  if (does === 'copy') {
    navigator.clipboard.writeText(turn.dataset.text);
    target.textContent = 'Copied';
  } else if (does === 'look') {
    if (String(getSelection())) return; // words are being marked, not clicked
    document.body.dataset.looking = '';
    trigger('look', { turn: Number(turn.dataset.turn), span: target.dataset.span ?? null });
  } else if (does === 'retry') trigger('retry', {});
  else if (does === 'undo') trigger('undo', {});
  else if (does === 'clear' && confirm('Delete this conversation?')) trigger('clear', {});
});
watch('value', () => {
  sessionStorage.setItem('owl-turns', JSON.stringify(props.value.turns));
  const talk = element.closest('#talk');
  talk.scrollTop = talk.scrollHeight;
});
// An image changes the height when it is there; `load` does not bubble.
element.addEventListener('load', () => {
  const talk = element.closest('#talk');
  talk.scrollTop = talk.scrollHeight;
}, true);

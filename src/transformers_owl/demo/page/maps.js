// Where the model looked, over the page.
const open = () => {
  delete document.body.dataset.looking;
  const dialog = element.querySelector('dialog');
  if (!dialog.querySelector('h2')) return;
  dialog.showModal();
  (dialog.querySelector('[aria-pressed=true]') ?? dialog.querySelector('.close')).focus();
};
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-do]');
  const dialog = element.querySelector('dialog');
  if (event.target === dialog || target?.dataset.do === 'close') dialog.close();
  else if (target?.dataset.do === 'look') {
    const { turn } = target.closest('[data-turn]').dataset;
    trigger('look', { turn: Number(turn), span: target.dataset.span ?? null });
  }
});
watch('value', open);

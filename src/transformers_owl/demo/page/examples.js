element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-example]');
  if (!target || document.querySelector('#box .stop-button')) return;
  const isNew = !document.querySelector('#talk .turn');
  if (isNew || confirm('Delete this conversation and ask the example?')) {
    trigger('example', { number: Number(target.dataset.example) });
  }
});

element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-example]');
  if (target) trigger('example', { number: Number(target.dataset.example) });
});

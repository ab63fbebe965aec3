element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-example]');
  const isAnswering = document.querySelector('#box .stop-button');
  if (target && !isAnswering) trigger('example', { number: Number(target.dataset.example) });
});

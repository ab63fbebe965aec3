() => {
  const box = () => document.querySelector('#box');
  // A file that is dropped anywhere is attached to the question.
  const isFile = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
  document.addEventListener('dragover', (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    document.body.dataset.dropping = '';
  });
  document.addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) delete document.body.dataset.dropping;
  });
  document.addEventListener('drop', (event) => {
    delete document.body.dataset.dropping;
    if (!isFile(event) || box().contains(event.target)) return;
    event.preventDefault();
    const input = box().querySelector('input[type=file]');
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });
  // While an answer is written, Enter waits.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || !box().contains(event.target)) return;
    if (!event.target.matches('textarea') || !box().querySelector('.stop-button')) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
  // Gradio's buttons have no names, and its thumbnails are items of no list.
  const names = { '.upload-button': 'Attach images', '.submit-button': 'Send', '.stop-button': 'Stop' };
  const name = () => {
    for (const [button, label] of Object.entries(names)) {
      document.querySelectorAll(`#box ${button}`).forEach((found) => found.setAttribute('aria-label', label));
    }
    document.querySelectorAll('#box [role=listitem]').forEach((item) => item.setAttribute('role', 'group'));
  };
  name();
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
}

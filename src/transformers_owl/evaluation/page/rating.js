() => {
  let active = 0;
  let left = null; // the view that is being left: until another is there, no key counts
  const view = () => document.querySelector('[data-view]')?.dataset.view ?? null;
  const cards = () => [...document.querySelectorAll('.card')].filter((card) => card.offsetParent);
  const show = (index) => {
    active = Math.max(0, Math.min(index, cards().length - 1));
    cards().forEach((card, place) => { card.dataset.active = place === active; });
  };
  const choose = (kind, place) => cards()[active].querySelectorAll(`input[type=${kind}]`)[place]?.click();
  const turn = (button) => document.querySelector(button).click();
  const turns = '#next, #previous, #open, #jump';
  const leave = (event) => { if (event.target.closest?.(turns)) left = view(); };
  document.addEventListener('click', leave, true);
  new MutationObserver(() => {
    if (view() === left || view() === null) return;
    if (left !== null) scrollTo(0, 0);
    left = null;
    if (!cards().some((card) => card.dataset.active === 'true')) show(0);
    if (document.body.dataset.shown !== view()) {
      document.body.dataset.shown = view();
      show(0);
    }
  }).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ['data-view'] });
  document.addEventListener('focusin', (event) => {
    const place = cards().indexOf(event.target.closest('.card'));
    if (place >= 0) show(place);
  });
  document.addEventListener('keydown', (event) => {
    const typing = event.target.matches('textarea, input:not([type=radio], [type=checkbox])');
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !cards().length) return;
    const key = event.key.toLowerCase();
    const isOurs = 'abcd123456jknpo'.includes(key) && key.length === 1;
    if (!isOurs) return;
    event.preventDefault();
    if (left !== null) return;
    if ('abcd'.includes(key)) choose('radio', 'abcd'.indexOf(key));
    else if ('123456'.includes(key)) choose('checkbox', key - 1);
    else if (key === 'j' || key === 'k') {
      show(active + (key === 'j' ? 1 : -1));
      cards()[active].scrollIntoView({ block: 'nearest' });
    } else turn({ n: '#next', p: '#previous', o: '#open' }[key]);
  });
}

// The answer that is being written. Who scrolls up to read is left there.
const talk = element.closest('#talk');
watch('value', () => {
  sessionStorage.setItem('owl-written', JSON.stringify(props.value.text));
  if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120) talk.scrollTop = talk.scrollHeight;
});

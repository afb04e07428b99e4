/* The live page's connection to its server, which tells a status each time it is new.

   Connection.start(onStatus, onState)  statuses as the server gives them; states are "connected", "lost" (it is tried
                                        again, by itself) and "gone" (the same, but for so long that it has likely ended)

   Nothing is held while nobody looks: a hidden page lets go, and catches up when it is seen again. */

const Connection = (() => {
  const SILENT_MS = 40000; // the server says something every 15 s: after sleep a connection may be dead and not know it
  const AGAIN_MS = 3000; // when the browser does not try again by itself
  const GONE_FAILURES = 4;
  let stream = null;
  let heard = 0; // when the server was heard last
  let failures = 0; // in a row
  let again = 0; // a timer
  let listeners = null;

  function open() {
    close();
    heard = Date.now();
    stream = new EventSource("changes");
    stream.addEventListener("status", (event) => {
      hear();
      listeners.onStatus(JSON.parse(event.data));
    });
    stream.addEventListener("alive", hear);
    stream.addEventListener("error", fail);
  }

  function close() {
    clearTimeout(again);
    if (stream) stream.close();
    stream = null;
  }

  function hear() {
    heard = Date.now();
    failures = 0;
    listeners.onState("connected");
  }

  function fail() {
    failures += 1;
    listeners.onState(failures < GONE_FAILURES ? "lost" : "gone");
    if (stream.readyState === EventSource.CLOSED) again = setTimeout(open, AGAIN_MS);
  }

  function follow() {
    if (document.hidden) close();
    else if (!stream) open();
  }

  function check() {
    if (stream && stream.readyState === EventSource.OPEN && Date.now() - heard > SILENT_MS) {
      listeners.onState("lost");
      open();
    }
  }

  function start(onStatus, onState) {
    listeners = { onStatus, onState };
    document.addEventListener("visibilitychange", follow);
    window.addEventListener("pagehide", close);
    window.addEventListener("pageshow", follow);
    window.addEventListener("online", check);
    setInterval(check, 10000);
    follow();
  }

  return { start };
})();

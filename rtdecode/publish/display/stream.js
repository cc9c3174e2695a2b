// The page's one connection: the server tells what is new of the board, the page asks.
const AGAIN_MS = 500;

let socket = null, number = 0;
const waiting = new Map();

/** Follow the stream for ever; `take` gets the board, the moment, and the names of the parts of the board that are new. */
export function follow(take) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  let board = {};
  const trials = new Map();
  socket = new WebSocket(`${scheme}://${location.host}/stream`);
  socket.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (told.answer !== undefined) return settle(told.answer, told);
    board = { ...board, ...told.board };
    if (told.board.trials) {  // of these, only what has changed
      for (const number of trials.keys()) if (number < told.board.trials.first) trials.delete(number);
      for (const trial of told.board.trials.changed) trials.set(trial.number, trial);
      board.trials = [...trials.values()];
    }
    take(board, told.now, Object.keys(told.board));
  };
  socket.onclose = () => {
    for (const asked of [...waiting.keys()]) settle(asked, { ok: false, code: "timeout", error: "the page has lost its server" });
    setTimeout(follow, AGAIN_MS, take);
  };
}

function settle(asked, answer) {
  waiting.get(asked)?.(answer);
  waiting.delete(asked);
}

/** Ask for something; return the answer: `ok`, and `error` and `code` where it was refused. */
export function ask(request, fields) {
  if (socket?.readyState !== WebSocket.OPEN) return Promise.resolve({ ok: false, code: "unsent", error: "the page has no contact with its server" });
  const id = ++number;
  socket.send(JSON.stringify({ id, request, ...fields }));
  return new Promise((answered) => waiting.set(id, answered));
}

// The stream in a browser: connects by itself, and again; requests are promises.

export class Rtdecode {
  // topics: of the messages that `onmessage` is to get. onsilence: told true when the gateway is away, false when it is back.
  constructor(topics, onmessage, onsilence = () => {}) {
    Object.assign(this, { topics, onmessage, onsilence, number: 0, waiting: new Map(), unsent: [] });
    this.connect();
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/stream?topics=${this.topics.join(",")}`);
    this.socket.onopen = () => { this.onsilence(false); this.unsent.splice(0).forEach(text => this.socket.send(text)); };
    this.socket.onclose = () => {
      this.waiting.forEach(({ reject }) => reject(new Error("the gateway went away; ask again")));
      this.waiting.clear();
      this.onsilence(true);
      setTimeout(() => this.connect(), 500);
    };
    this.socket.onmessage = event => {
      const told = JSON.parse(event.data);
      if (!("answer" in told)) return this.onmessage(told);
      const asked = this.waiting.get(told.answer);
      this.waiting.delete(told.answer);
      if (asked) told.ok ? asked.resolve(told) : asked.reject(new Error(told.error));
    };
  }

  // For example request("event", { kind: "run_start", run: 1 }).
  request(kind, fields) {
    const id = ++this.number, text = JSON.stringify({ ...fields, id, request: kind });
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text); else this.unsent.push(text);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
}

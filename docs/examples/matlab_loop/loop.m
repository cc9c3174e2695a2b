% Three trials of feedback in MATLAB, or Octave 7 and later, beside `rtdecode gateway` on the same machine.
base = 'http://127.0.0.1:8766';
json = weboptions('MediaType', 'application/json', 'Timeout', 40);
run_number = 1; seen = 0;
webwrite([base '/request/event'], struct('kind', 'run_start', 'run', run_number), json);
after = 0;
for number = 0:2
    trial = sprintf('r%02dt%02d', run_number, number);
    answer = webwrite([base '/request/event'], struct('kind', 'trial', 'run', run_number, 'trial', trial, ...
        'onset_s', 20 * number, 'duration_s', 2, 'condition', sprintf('seen-%d', seen)), json);
    if ~answer.ok, error(answer.error); end
    shown = false;
    while ~shown
        found = webread(sprintf('%s/messages?topics=feedback&after=%d&wait_s=20', base, after), json);
        after = found.after;
        for k = 1:numel(found.messages)
            message = found.messages(k);
            if iscell(message), message = message{1}; end
            if strcmp(message.trial, trial) && strcmp(message.state, 'shown')
                seen = message.step; shown = true;
                fprintf('%s: step %d of %d\n', trial, seen, message.steps);
            end
        end
    end
end
webwrite([base '/request/event'], struct('kind', 'run_end', 'run', run_number), json);

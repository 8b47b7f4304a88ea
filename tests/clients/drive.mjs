// Makes a client do what each line of stdin says, and answers each with a line of what came of it.
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';

/** @param connect gets what answers a question of the server; it returns a client, and what the SDKs have each its own way */
export async function drive(connect) {
  let step, heard;
  const answer = async ({ params }) => {
    heard.questions.push(params);
    return step.answer;
  };
  const { client, revision, callTool, UriTemplate } = await connect(JSON.parse(process.argv[2]), answer);
  const calls = {
    revision,
    readTemplate: (template, values) => client.readResource({ uri: new UriTemplate(template).expand(values) }),
    callTool: async (params) => {
      const cancelling = new AbortController();
      const { cancelWhen } = step;
      const looking = cancelWhen && setInterval(() => existsSync(cancelWhen) && cancelling.abort('enough'), 10);
      const onprogress = (progress) => heard.progress.push(progress);
      try {
        return await callTool(params, { onprogress, signal: cancelling.signal });
      } finally {
        clearInterval(looking);
      }
    },
  };
  for await (const line of createInterface({ input: process.stdin })) {
    step = JSON.parse(line);
    heard = { questions: [], progress: [] };
    const call = calls[step.method] ?? ((...args) => client[step.method](...args));
    let outcome;
    try {
      outcome = { result: (await call(...step.args)) ?? null };
    } catch (error) {
      outcome = { error: { name: error.name, message: error.message ?? String(error), code: error.code } };
    }
    console.log(JSON.stringify({ ...outcome, ...heard }));
  }
  await client.close();
}

// The TypeScript SDK, version 2: revision 2026-07-28.
import { Client, StreamableHTTPClientTransport, UriTemplate } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { drive } from './drive.mjs';

await drive(async ({ url, headers, stdio, capabilities }, answer) => {
  const options = { capabilities, versionNegotiation: { mode: { pin: '2026-07-28' } } };
  const client = new Client({ name: 'test', version: '1' }, options);
  if (capabilities.elicitation) client.setRequestHandler('elicitation/create', answer);
  const overHttp = () => new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
  await client.connect(url ? overHttp() : new StdioClientTransport(stdio));
  return {
    client,
    revision: () => client.getNegotiatedProtocolVersion(),
    callTool: (params, options) => client.callTool(params, options),
    UriTemplate,
  };
});

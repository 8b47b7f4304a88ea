// The TypeScript SDK, version 1: revision 2025-11-25.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { UriTemplate } from '@modelcontextprotocol/sdk/shared/uriTemplate.js';
import { ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { drive } from './drive.mjs';

await drive(async ({ url, headers, stdio, capabilities }, answer) => {
  const client = new Client({ name: 'test', version: '1' }, { capabilities });
  if (capabilities.elicitation) client.setRequestHandler(ElicitRequestSchema, answer);
  const overHttp = () => new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
  const transport = url ? overHttp() : new StdioClientTransport(stdio);
  let revision;
  const tell = transport.setProtocolVersion?.bind(transport);
  transport.setProtocolVersion = (version) => {
    revision = version;
    tell?.(version);
  };
  await client.connect(transport);
  return {
    client,
    revision: () => revision,
    callTool: (params, options) => client.callTool(params, undefined, options),
    UriTemplate,
  };
});

// A host of MCP Apps: AppBridge, and a frame without the host's origin. The test answers as the MCP client.
import { AppBridge, PostMessageTransport } from "@modelcontextprotocol/ext-apps/app-bridge";

window.seen = { sizes: [], contexts: [], modes: [] };

window.show = async ({ html, capabilities, context, toolArguments, toolResult, policy }) => {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.style.cssText = "border: 0; width: 100%; height: 400px";
  const bridge = new AppBridge(null, { name: "test-host", version: "1" }, capabilities, { hostContext: context });
  window.bridge = bridge;
  bridge.oncalltool = (params) => window.callTool(params);
  bridge.onsizechange = (size) => {
    window.seen.sizes.push(size);
    if (size.height !== undefined) frame.style.height = `${size.height}px`;
  };
  bridge.onupdatemodelcontext = async (params) => {
    window.seen.contexts.push(params);
    return {};
  };
  bridge.onrequestdisplaymode = async ({ mode }) => {
    window.seen.modes.push(mode);
    return { mode };
  };
  const initialized = new Promise((resolve) => (bridge.oninitialized = resolve));
  document.body.append(frame);
  await bridge.connect(new PostMessageTransport(frame.contentWindow, frame.contentWindow));
  frame.srcdoc = html.replace("<head>", `<head><meta http-equiv="Content-Security-Policy" content="${policy}">`);
  await initialized;
  window.app = { info: bridge.getAppVersion(), capabilities: bridge.getAppCapabilities() };
  await bridge.sendToolInput({ arguments: toolArguments });
  if (toolResult) await bridge.sendToolResult(toolResult);
};
